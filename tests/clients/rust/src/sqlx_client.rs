use serde_json::{Value, json};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgHasArrayType, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Decode, Encode, Row, Type, TypeInfo};

use crate::{Failure, Rows, Step};

/// Text as the driver is to send and to read it.
pub trait Text:
    Type<Postgres>
    + PgHasArrayType
    + for<'q> Encode<'q, Postgres>
    + for<'r> Decode<'r, Postgres>
    + Into<String>
    + From<String>
    + Send
    + Unpin
    + 'static
{
}

impl Text for String {}
impl Text for EncryptedText {}

#[derive(Debug, sqlx::Type)]
#[sqlx(type_name = "encrypted_text")]
pub struct EncryptedText(pub String);

impl From<String> for EncryptedText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<EncryptedText> for String {
    fn from(text: EncryptedText) -> Self {
        text.0
    }
}

pub async fn run<T: Text>(steps: &[Step]) -> Vec<Rows> {
    // Host, port, user and database are taken from the environment.
    let mut connection = PgConnectOptions::new()
        .connect()
        .await
        .expect("a connection");
    let mut results = Vec::new();
    for step in steps {
        let mut query = sqlx::query(AssertSqlSafe(step.sql.as_str()));
        for value in &step.parameters {
            query = bind::<T>(query, value);
        }
        let rows = query.fetch_all(&mut connection).await;
        results.push(
            rows.and_then(|rows| rows.iter().map(values::<T>).collect())
                .map_err(failure),
        );
    }
    results
}

fn bind<'q, T: Text>(
    query: Query<'q, Postgres, PgArguments>,
    value: &Value,
) -> Query<'q, Postgres, PgArguments> {
    match value {
        Value::Number(number) => query.bind(number.as_i64().expect("an integer") as i32),
        Value::Array(array) => {
            let texts = array
                .iter()
                .map(|text| T::from(text.as_str().expect("text").to_owned()));
            query.bind(texts.collect::<Vec<T>>())
        }
        text => query.bind(text.as_str().map(|text| T::from(text.to_owned()))),
    }
}

fn values<T: Text>(row: &PgRow) -> Result<Vec<Value>, sqlx::Error> {
    (0..row.len()).map(|i| value::<T>(row, i)).collect()
}

fn value<T: Text>(row: &PgRow, i: usize) -> Result<Value, sqlx::Error> {
    let text = |text: T| -> Value { Into::<String>::into(text).into() };
    let name = row.column(i).type_info().name().to_owned();
    Ok(match name.as_str() {
        "INT4" => json!(row.try_get::<Option<i32>, _>(i)?),
        "TEXT" => json!(row.try_get::<Option<String>, _>(i)?),
        "TEXT[]" => json!(row.try_get::<Option<Vec<String>>, _>(i)?),
        name if name.starts_with('_') || name.ends_with("[]") => row
            .try_get::<Option<Vec<T>>, _>(i)?
            .map(|texts| texts.into_iter().map(text).collect::<Value>())
            .into(),
        _ => row.try_get::<Option<T>, _>(i)?.map(text).into(),
    })
}

fn failure(error: sqlx::Error) -> Failure {
    let code = error.as_database_error().and_then(|error| error.code());
    Failure::new(code.as_deref(), &error)
}
