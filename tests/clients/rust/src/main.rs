//! Runs statements with tokio-postgres or sqlx as they come.
//!
//! The argument names the driver and how it reads text: as `String`, or as the type
//! of docs/clients.md. Standard input holds a JSON array of {sql, parameters}; standard
//! output gets, for each, {rows} or {error, message}.

mod sqlx_client;
mod tokio_postgres_client;

use std::io::{read_to_string, stdin};

use serde::Deserialize;
use serde_json::{Value, json};

type Rows = Result<Vec<Vec<Value>>, Failure>;

#[derive(Deserialize)]
struct Step {
    sql: String,
    parameters: Vec<Value>,
}

/// A SQLSTATE, or "client" for what the driver refuses by itself.
struct Failure {
    code: String,
    message: String,
}

impl Failure {
    fn new(code: Option<&str>, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        if let Some(source) = error.source() {
            message = format!("{message}: {source}");
        }
        Self {
            code: code.unwrap_or("client").to_owned(),
            message,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let steps: Vec<Step> =
        serde_json::from_str(&read_to_string(stdin()).expect("UTF-8")).expect("steps");
    let results = match std::env::args().nth(1).as_deref() {
        Some("tokio-postgres") => tokio_postgres_client::run::<String>(&steps).await,
        Some("tokio-postgres-type") => {
            tokio_postgres_client::run::<tokio_postgres_client::EncryptedText>(&steps).await
        }
        Some("tokio-postgres-copy") => tokio_postgres_client::copy(&steps).await,
        Some("sqlx") => sqlx_client::run::<String>(&steps).await,
        Some("sqlx-type") => sqlx_client::run::<sqlx_client::EncryptedText>(&steps).await,
        _ => panic!("no such client"),
    };
    let printed: Vec<Value> = results
        .into_iter()
        .map(|result| match result {
            Ok(rows) => json!({ "rows": rows }),
            Err(failure) => json!({ "error": failure.code, "message": failure.message }),
        })
        .collect();
    print!("{}", Value::from(printed));
}
