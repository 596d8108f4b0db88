use std::collections::HashMap;
use std::env::var;
use std::error::Error;
use std::pin::pin;

use serde_json::{Value, json};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, NoTls, Row};

use crate::{Failure, Rows, Step};

/// Text as the driver is to send and to read it.
pub trait Text: for<'a> FromSql<'a> + ToSql + Sync + Into<String> + From<String> + 'static {}

impl<T: for<'a> FromSql<'a> + ToSql + Sync + Into<String> + From<String> + 'static> Text for T {}

#[derive(Debug)]
pub struct EncryptedText(pub String);

impl ToSql for EncryptedText {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.0.to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        // Or a domain over it.
        ty.name() == "encrypted_text"
            || matches!(ty.kind(), Kind::Domain(of) if <Self as ToSql>::accepts(of))
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for EncryptedText {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_sql(ty, raw)?))
    }

    fn accepts(ty: &Type) -> bool {
        ty.name() == "encrypted_text"
    }
}

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
    let client = connect().await;
    let mut statements = HashMap::new();
    let mut results = Vec::new();
    for step in steps {
        if !statements.contains_key(&step.sql) {
            match client.prepare(&step.sql).await {
                Ok(statement) => statements.insert(&step.sql, statement),
                Err(error) => {
                    results.push(Err(failure(error)));
                    continue;
                }
            };
        }
        let parameters: Vec<_> = step.parameters.iter().map(parameter::<T>).collect();
        let borrowed: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|p| &**p as _).collect();
        let rows = client.query(&statements[&step.sql], &borrowed).await;
        results.push(
            rows.and_then(|rows| rows.iter().map(values::<T>).collect())
                .map_err(failure),
        );
    }
    results
}

/// The parameters of each statement are the rows of a binary COPY.
pub async fn copy(steps: &[Step]) -> Vec<Rows> {
    let client = connect().await;
    let mut results = Vec::new();
    for step in steps {
        results.push(copy_in(&client, step).await.map_err(failure));
    }
    results
}

async fn copy_in(client: &Client, step: &Step) -> Result<Vec<Vec<Value>>, tokio_postgres::Error> {
    let sink = client.copy_in(&step.sql).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &[Type::TEXT]));
    for value in &step.parameters {
        writer.as_mut().write(&[&value.as_str()]).await?;
    }
    writer.finish().await?;
    Ok(vec![])
}

async fn connect() -> Client {
    let address = format!(
        "host={} port={} user={} dbname={}",
        var("PGHOST").expect("PGHOST"),
        var("PGPORT").expect("PGPORT"),
        var("PGUSER").expect("PGUSER"),
        var("PGDATABASE").expect("PGDATABASE"),
    );
    let (client, connection) = tokio_postgres::connect(&address, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    client
}

fn parameter<T: Text>(value: &Value) -> Box<dyn ToSql + Sync> {
    match value {
        Value::Number(number) => Box::new(number.as_i64().expect("an integer") as i32),
        Value::Array(array) => {
            let texts = array
                .iter()
                .map(|text| T::from(text.as_str().expect("text").to_owned()));
            Box::new(texts.collect::<Vec<T>>())
        }
        text => Box::new(text.as_str().map(|text| T::from(text.to_owned()))),
    }
}

fn values<T: Text>(row: &Row) -> Result<Vec<Value>, tokio_postgres::Error> {
    (0..row.len()).map(|i| value::<T>(row, i)).collect()
}

fn value<T: Text>(row: &Row, i: usize) -> Result<Value, tokio_postgres::Error> {
    let text = |text: T| -> Value { Into::<String>::into(text).into() };
    Ok(match row.columns()[i].type_() {
        &Type::INT4 => json!(row.try_get::<_, Option<i32>>(i)?),
        &Type::TEXT => json!(row.try_get::<_, Option<String>>(i)?),
        &Type::TEXT_ARRAY => json!(row.try_get::<_, Option<Vec<String>>>(i)?),
        ty if ty.name().starts_with('_') => row
            .try_get::<_, Option<Vec<T>>>(i)?
            .map(|texts| texts.into_iter().map(text).collect::<Value>())
            .into(),
        _ => row.try_get::<_, Option<T>>(i)?.map(text).into(),
    })
}

fn failure(error: tokio_postgres::Error) -> Failure {
    Failure::new(error.code().map(|code| code.code()), &error)
}
