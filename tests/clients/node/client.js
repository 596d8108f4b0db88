// Runs statements with node-postgres as it comes.
//
// Standard input holds a JSON array of {sql, parameters}; standard output gets, for
// each, {rows} or {error, message}. With --named each distinct text is a named statement,
// which stays prepared.
"use strict";

const fs = require("node:fs");
const { Client } = require("pg");

async function main() {
    const client = new Client();
    await client.connect();
    const names = new Map();
    const results = [];
    for (const { sql, parameters } of JSON.parse(fs.readFileSync(0, "utf8"))) {
        const query = { text: sql, values: parameters, rowMode: "array" };
        if (process.argv.includes("--named")) {
            if (!names.has(sql)) {
                names.set(sql, `statement ${names.size}`);
            }
            query.name = names.get(sql);
        }
        try {
            results.push({ rows: (await client.query(query)).rows });
        } catch (error) {
            results.push({ error: error.code ?? error.name, message: error.message });
        }
    }
    await client.end();
    process.stdout.write(JSON.stringify(results));
}

main();
