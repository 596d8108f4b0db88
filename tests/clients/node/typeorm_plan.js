// Prints the statements that TypeORM's `synchronize` plans, or why it does not plan.
// Standard input holds the options of an EntitySchema in JSON. With --tell-the-type it is
// told the type first, as docs/clients.md says.
"use strict";

require("reflect-metadata");
const fs = require("node:fs");
const { DataSource, EntitySchema } = require("typeorm");

async function main() {
    const { PGHOST, PGPORT, PGUSER, PGDATABASE } = process.env;
    const source = new DataSource({
        type: "postgres",
        host: PGHOST,
        port: Number(PGPORT),
        username: PGUSER,
        database: PGDATABASE,
        installExtensions: false,
        entities: [new EntitySchema(JSON.parse(fs.readFileSync(0, "utf8")))],
    });
    if (process.argv.includes("--tell-the-type")) {
        source.driver.supportedDataTypes.push("encrypted_text");
    }
    try {
        await source.initialize();
    } catch (error) {
        process.stdout.write(JSON.stringify([error.message]));
        return;
    }
    const plan = await source.driver.createSchemaBuilder().log();
    await source.destroy();
    process.stdout.write(JSON.stringify(plan.upQueries.map(({ query }) => query)));
}

main();
