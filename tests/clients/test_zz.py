from test_every_client import *
@every_client
def test_z(db, client):
    db.psql("CREATE TABLE accounts (id int, email text unique, note text); INSERT INTO accounts SELECT n, 'user' || n || '@example.com' FROM generate_series(1, 100) n")
    sql="SELECT id, {email} FROM accounts WHERE email = {1}"
    steps=[Step(sql,(email(n),)) for n in range(1,8)]
    pc = client._replace(parameter="{}",column="{}") if "type" in client.name else client
    rs = client.execute(db, *steps, Step("SELECT encrypt_column('accounts','email')::int"), *steps, Step("select 1"), *steps)
    print("RES", client.name, [r[0] if isinstance(r, Failure) else len(r) for r in rs], [r[1] for r in rs if isinstance(r, Failure)][:1])
