"""README.md and docs/ are true: the SQL of the README runs and gives what it says, the
reference names what is there, and links lead somewhere.

How its blocks are run, readme.py tells.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import decryptor
import pytest

from harness import Cluster, Database, fetch
from kinds import KINDS
from readme import README, ROOT, Step, go_through, steps

REFERENCE = ROOT / "docs" / "reference.md"
ENCRYPTED_TYPES = ", ".join(f"'{kind.type}'::regtype" for kind in KINDS)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

# Names and arguments of calls in a heading, or in the first cell of a table's row. E
# stands for each encrypted type, P for its plain type.
CALLS = re.compile(
    r"^(?:### |\| )((?:`[a-z0-9_.EP]+\([a-z_, \[\]EP]*\)`(?:, )?)+)", re.MULTILINE
)
SETTING_ROW = re.compile(
    r"^\| `(colcrypt\.\w+)` \| (\w+) \| (?:`([^`]*)` )?\|$", re.MULTILINE
)
CAST_ROW = re.compile(
    r"^\| `([a-z_ EP]+)` \| `([a-z_ EP]+)` \| (implicit|assignment|explicit) \|$",
    re.MULTILINE,
)
OPERATOR_ROW = re.compile(
    r"^\| ((?:`(?:[<>=~#]|\\\|)+`(?:, )?)+) \| ([a-z_`, EP]+) \| ([a-z_`, EP]+) \|",
    re.MULTILINE,
)
CLASS_ROW = re.compile(r"^\| `(\w+)` \| `(btree|hash)` \| (yes|no) \|", re.MULTILINE)
COLUMN_ROW = re.compile(r"^\| `(\w+)` \| ([a-z \[\]]+) \|", re.MULTILINE)
ERROR_ROW = re.compile(r"^\| ([0-9A-Z]{5}) \| (\w+) \|", re.MULTILINE)


def test_the_readme_is_true_from_top_to_bottom(cluster: Cluster) -> None:
    key_file = cluster.dir / "ring.keys"
    cluster.conf(session_preload_libraries="colcrypt")
    cluster.reload()
    cluster.psql("CREATE DATABASE readme")
    with cluster.connect(dbname="readme") as connection:
        assert go_through(connection, key_file) > 30


def test_what_must_come_of_a_statement_is_found() -> None:
    text = """<!-- ring: new -->

  ```sql
  SELECT 1,
    2; -- → 1 | 2
  SELECT ';' || 'x';
  SELECT 1/0; -- ERROR 22012
  ```
"""
    assert list(steps(text)) == [
        Step(1, "", ring="new"),
        Step(5, "SELECT 1,\n  2", "→ 1 | 2"),
        Step(6, "SELECT ';' || 'x'"),
        Step(7, "SELECT 1/0", "ERROR 22012"),
    ]


def for_each_type(*names: str) -> set[str]:
    """The names in a row, with a type for E and its plain type for P."""
    row = "|".join(names)
    return {row.replace("E", kind.type).replace("P", kind.plain) for kind in KINDS}


def test_the_reference_names_every_function_and_no_other(db: Database) -> None:
    there = db.psql("""
        SELECT objid::regprocedure FROM pg_depend JOIN pg_extension AS e ON e.oid = refobjid
        WHERE deptype = 'e' AND classid = 'pg_proc'::regclass AND extname = 'colcrypt'""")
    named = [
        name.replace(", ", ",")
        for calls in CALLS.findall(REFERENCE.read_text())
        for call in re.findall("`([^`]+)`", calls)
        for name in for_each_type(call)
    ]
    assert sorted(named) == sorted(there.splitlines())


def test_the_reference_tells_rights_and_volatility(db: Database) -> None:
    rows = db.psql("""
        SELECT proname, CASE provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE'
                                         ELSE 'VOLATILE' END,
               CASE proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED'
                                ELSE 'UNSAFE' END,
               has_function_privilege('public', p.oid, 'EXECUTE'), pronargs
        FROM pg_proc AS p JOIN pg_depend ON objid = p.oid
        JOIN pg_extension AS e ON e.oid = refobjid
        WHERE deptype = 'e' AND extname = 'colcrypt' AND proname NOT LIKE 'encrypted\\_%'""")
    for row in rows.splitlines():
        name, volatility, parallel, is_public, arguments = row.split("|")
        # Those of one name and as many arguments are one function for all types.
        more = r"[^,)]*," * (int(arguments) - 1)
        section = re.search(
            rf"^### [^\n]*`(?:colcrypt\.)?{name}\({more}[^,)]*\)`.*?(?=^##)",
            REFERENCE.read_text(),
            re.MULTILINE | re.DOTALL,
        )
        assert section is not None, name
        assert f"{volatility}, PARALLEL {parallel}" in section[0], name
        assert ("revoked from PUBLIC" in section[0]) == (is_public == "f"), name


def test_the_reference_names_every_operator_and_no_other(db: Database) -> None:
    there = db.psql("""
        SELECT oprname, oprleft::regtype, oprright::regtype
        FROM pg_operator AS o JOIN pg_depend ON objid = o.oid
        JOIN pg_extension AS e ON e.oid = refobjid
        WHERE deptype = 'e' AND classid = 'pg_operator'::regclass AND extname = 'colcrypt'""")
    assert sorted(operators(section("Operators"))) == sorted(there.splitlines())


def operators(text: str) -> set[str]:
    """Those in the rows of a table, each with the types that it is for."""
    return {
        name.replace("\\|", "|")
        for row in OPERATOR_ROW.findall(text)
        for one in itertools.product(*(re.findall("`([^`]+)`", cell) for cell in row))
        for name in for_each_type(*one)
    }


def test_the_reference_names_the_operators_that_are_refused(db: Database) -> None:
    there = db.psql("""
        SELECT oprname, oprleft::regtype, oprright::regtype
        FROM pg_operator JOIN pg_proc AS p ON p.oid = oprcode
        WHERE proname LIKE 'encrypted\\_%\\_no\\_order'""")
    rows = section("Operators").splitlines()
    refused = operators("\n".join(row for row in rows if "refused with 0A000" in row))
    assert sorted(refused) == sorted(there.splitlines())


def test_the_reference_names_the_operator_classes(db: Database) -> None:
    there = db.psql(f"""
        SELECT opcname, amname, CASE WHEN opcdefault THEN 'yes' ELSE 'no' END
        FROM pg_opclass JOIN pg_am ON pg_am.oid = opcmethod
        WHERE opcintype IN ({ENCRYPTED_TYPES})""")
    rows = CLASS_ROW.findall(section("Operator classes"))
    named = [name for row in rows for name in for_each_type(*row)]
    assert sorted(named) == sorted(there.splitlines())


@pytest.mark.parametrize("kind, relkind", [("table", "r"), ("view", "v")])
def test_the_reference_names_tables_and_views_with_their_columns(
    db: Database, kind: str, relkind: str
) -> None:
    relations = db.psql(f"""
        SELECT relname FROM pg_class
        WHERE relnamespace = 'colcrypt'::regnamespace AND relkind = '{relkind}'""")
    heading = re.compile(rf"^### The {kind} colcrypt\.(\w+)$", re.MULTILINE)
    named = heading.findall(REFERENCE.read_text())
    assert sorted(named) == sorted(relations.splitlines())
    for relation in named:
        there = db.psql(f"""
            SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
            WHERE attrelid = 'colcrypt.{relation}'::regclass AND attnum > 0
            ORDER BY attnum""")
        columns = COLUMN_ROW.findall(section(f"The {kind} colcrypt.{relation}"))
        assert ["|".join(row) for row in columns] == there.splitlines()


@pytest.mark.parametrize(
    "function",
    [
        "inspect",
        "ring_keys",
        "key_usage",
        "droppable_keys",
        "sealed_constants",
        "stale_columns",
        "verify_column",
        "verify_value",
        "migration_obstacles",
    ],
)
def test_the_reference_names_what_functions_give(db: Database, function: str) -> None:
    # The same of each function of that name.
    there = db.psql(f"""
        SELECT name, format_type(type, NULL)
        FROM pg_proc,
            unnest(proargnames, proargmodes, proallargtypes)
                WITH ORDINALITY AS a (name, mode, type, number)
        WHERE pronamespace = 'colcrypt'::regnamespace AND proname = '{function}'
            AND mode IN ('o', 't')
        GROUP BY number, name, type ORDER BY number""")
    heading = re.search(
        rf"^### (`colcrypt\.{function}\(.*)$", REFERENCE.read_text(), re.MULTILINE
    )
    assert heading is not None
    columns = COLUMN_ROW.findall(section(heading[1]))
    assert ["|".join(row) for row in columns] == there.splitlines()


def test_the_reference_names_every_condition_that_is_raised() -> None:
    raised = set()
    for file in (ROOT / "src").rglob("*.rs"):
        # T_R_ and the like are classes, in the names of conditions that occur twice.
        code = re.compile(r"ERRCODE_(?:T_R_|E_R_I_E_)?([A-Z_]+)")
        raised |= {name.lower() for name in code.findall(file.read_text())}
    # These come with a WARNING and a NOTICE.
    # The others are compared with.
    raised -= {"warning", "successful_completion"}
    raised -= {"integrity_constraint_violation", "syntax_error"}
    raised -= {"foreign_key_violation", "restrict_violation"}
    # Looked at, where others raise them.
    raised -= {"data_exception", "to_category"}
    assert raised <= {condition for _, condition in ERROR_ROW.findall(section("Errors"))}


def section(heading: str) -> str:
    """A section of the reference, up to the next heading of any level."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)",
        REFERENCE.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None, heading
    return found[1]


@pytest.mark.parametrize("algorithm", ["aes-256-cmac", "hmac-sha-256"])
def test_tags_and_wrapped_keys_are_what_the_format_page_says(
    cluster: Cluster, algorithm: str
) -> None:
    ring = [decryptor.ring_key((cluster.dir / "ring.keys").read_text().strip())]
    with cluster.connect() as session:
        key_id = fetch(session, "SELECT colcrypt.create_index_key(%s)", algorithm)
        row = session.execute("""
            SELECT wrapped, key_id, wrapped_by, kind, coalesce(name, ''), suite
            FROM colcrypt.key WHERE kind = 'index'""").fetchone()
        names = ("key_id", "wrapped_by", "kind", "name", "suite")
        index_key = decryptor.unwrap_key(row[0], ring, **dict(zip(names, row[1:])))
        assert decryptor.id_in_hex(index_key) == key_id and row[-1] == algorithm
        texts = ["", "alice@example.com", "žluťoučký kůň", "x" * 100_000]
        tags = {text: decryptor.index_tag(index_key, text, algorithm) for text in texts}
        for text, tag in tags.items():
            code = fetch(session, "SELECT encrypted_text_hash(encrypt(%s))", text)
            assert code % 2**32 == decryptor.hash_code(tag)
            for seed in (0, 7, -1, 0x7A5B22367996DCFD):
                extended = fetch(
                    session,
                    "SELECT encrypted_text_hash_extended(encrypt(%s), %s)",
                    text,
                    seed,
                )
                wanted = decryptor.hash_extended(tag, seed % 2**64)
                assert extended % 2**64 == wanted
        in_order = fetch(
            session,
            """SELECT array_agg(decrypt(value) ORDER BY value)
            FROM (SELECT encrypt(text) FROM unnest(%s::text[]) AS text) AS v (value)""",
            texts,
        )
    assert in_order == sorted(texts, key=tags.__getitem__)


@pytest.mark.parametrize("suite", ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"])
def test_managed_keys_and_modifiers_are_what_the_format_page_says(
    cluster: Cluster, suite: str
) -> None:
    ring = [decryptor.ring_key((cluster.dir / "ring.keys").read_text().strip())]
    with cluster.connect() as session:
        key_id = fetch(session, "SELECT colcrypt.create_key('pii', %s)", suite)
        session.execute("CREATE TABLE people (ssn encrypted_text(pii))")
        session.execute("INSERT INTO people VALUES ('078-05-1120')")
        wrapped, wrapped_by = session.execute(
            "SELECT wrapped, wrapped_by FROM colcrypt.key WHERE key_id = %s", [key_id]
        ).fetchone()
        text_form = fetch(session, "SELECT ciphertext(ssn) FROM people")
        modifier = fetch(
            session,
            """SELECT atttypmod FROM pg_attribute
            WHERE attrelid = 'people'::regclass AND attname = 'ssn'""",
        )
    key = decryptor.unwrap_key(
        wrapped,
        ring,
        key_id=key_id,
        wrapped_by=wrapped_by,
        kind="data",
        name="pii",
        suite=suite,
    )
    assert decryptor.decrypt(text_form, [key]) == "078-05-1120"
    digest = hashlib.sha256(b"colcrypt v1 key name" + b"pii").digest()
    assert modifier == int.from_bytes(digest[:4], "big") >> 1
    page = (ROOT / "docs" / "format.md").read_text()
    assert f"    modifier of pii      {modifier:08x}\n" in page
    aad = decryptor.wrap_aad(bytes.fromhex("c2bede9a"), "data", "pii", "xaes-256-gcm")
    assert f"    AAD of a data key    {aad.hex()}\n" in page


def test_the_reference_names_every_cast_and_no_other(db: Database) -> None:
    there = db.psql(f"""
        SELECT castsource::regtype, casttarget::regtype,
               CASE castcontext WHEN 'i' THEN 'implicit' WHEN 'a' THEN 'assignment'
                                WHEN 'e' THEN 'explicit' END
        FROM pg_cast
        WHERE castsource IN ({ENCRYPTED_TYPES}) OR casttarget IN ({ENCRYPTED_TYPES})""")
    rows = CAST_ROW.findall(section("Casts"))
    named = [name for row in rows for name in for_each_type(*row)]
    assert sorted(named) == sorted(there.splitlines())


def test_the_reference_names_every_setting_and_no_other(db: Database) -> None:
    there = db.psql("""
        LOAD 'colcrypt';
        SELECT name, context, boot_val FROM pg_settings WHERE name LIKE 'colcrypt.%'""")
    # It has no row there, so that nothing can show its text; but it exists.
    assert "colcrypt.key|" not in there
    assert db.psql("LOAD 'colcrypt'; SHOW colcrypt.key") == ""
    there += "\ncolcrypt.key|user|"
    text = REFERENCE.read_text()
    named = ["|".join(row) for row in SETTING_ROW.findall(text)]
    assert sorted(named) == sorted(there.splitlines())
    for row in named:
        assert f"\n### `{row.split('|')[0]}`\n" in text


def test_the_readme_names_the_same_settings_as_the_reference() -> None:
    row = re.compile(r"^\| `(colcrypt\.\w+)` \|", re.MULTILINE)
    assert row.findall(README.read_text()) == [
        name for name, _, _ in SETTING_ROW.findall(REFERENCE.read_text())
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
