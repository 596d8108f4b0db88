//! Every error of the extension, and the one place where an error becomes
//! SQLSTATE, DETAIL and HINT. No variant carries plaintext, ciphertext or key
//! bytes.

use colcrypt_core::{KeyId, Malformed, OpenError, Payload, RandomError, SealError, TextFormError};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::tally::Outcome;

/// Where a malformed or reserved text came in: the SQLSTATEs differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Text,
    Binary,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no encryption key is configured")]
    NoKeyRing { reason: Option<String> },
    #[error("encryption key {needed} is not in the key ring")]
    UnknownKey {
        needed: KeyId,
        loaded: Vec<KeyId>,
        /// Whether the ring is a random one.
        dev_mode: bool,
    },
    #[error("{}", not_loaded(*.required))]
    NotLoaded {
        reason: Option<String>,
        required: bool,
    },
    #[error("could not allocate shared memory for encryption keys: {0}")]
    NoSharedMemory(String),
    /// One text for wrong key material and tampering.
    #[error("encrypted value could not be authenticated under key {key}")]
    Damaged { key: KeyId },
    #[error("stored value is not in a format that this version of colcrypt knows")]
    Malformed,
    #[error("encrypted value does not hold valid text")]
    NotText { key: KeyId },
    #[error("encrypted value does not hold a JSON document")]
    NotJson { key: KeyId },
    /// In place of PostgreSQL's own error, which quotes the value, or whose statement in
    /// the log does.
    #[error("document is nested too deep for this session")]
    DeepDocument,
    /// As above.
    #[error("invalid input syntax for type encrypted_{}", payload.name())]
    InvalidLiteral {
        payload: Payload,
        code: PgSqlErrorCode,
    },
    #[error("decrypted value has a character that the database encoding cannot represent")]
    Unrepresentable,
    #[error("value starts with the reserved prefix \"colcrypt:v\"")]
    ReservedPrefix(Wire),
    #[error("value is not ciphertext in text form")]
    BadTextForm { reason: TextFormError, wire: Wire },
    #[error("value is not a Fernet token")]
    BadFernetToken { reason: TextFormError },
    #[error("Fernet token could not be authenticated under any key of the key ring")]
    ForeignFernetToken,
    #[error("value is not sealed as a Fernet token")]
    NotFernet,
    #[error("encryption key {name} does not exist")]
    UnknownKeyName { name: String },
    #[error("encryption key {name} already exists")]
    KeyNameExists { name: String },
    #[error("encryption key {name} cannot be told apart from {other} in a type modifier")]
    KeyNameClash { name: String, other: String },
    #[error("invalid name of an encryption key")]
    BadKeyName,
    #[error("encryption key {name} was destroyed")]
    DestroyedKeyName { name: String },
    #[error("encryption key {key} was destroyed")]
    DestroyedKey { key: KeyId },
    #[error("permission denied for encryption key {key}")]
    KeyNotGranted { key: KeyId },
    #[error("permission denied for encryption key {name}")]
    KeyNameNotGranted { name: String },
    #[error("this database was not encrypted with any key of the key ring, primary {primary}")]
    UnknownPrimary {
        primary: KeyId,
        remembered: Vec<KeyId>,
    },
    #[error("permission denied to {what}: colcrypt.access is \"{access}\"")]
    Access {
        what: &'static str,
        access: &'static str,
    },
    #[error("permission denied to compare values under encryption key {key}")]
    CompareNotGranted { key: KeyId },
    #[error(
        "permission denied to compare values of a column under an encryption key that is not granted"
    )]
    CompareColumnNotGranted,
    #[error("a dump would hold masks in place of values")]
    DumpOfMasks,
    #[error("row-level security hides rows of \"{relation}\"")]
    HiddenRows { relation: String },
    #[error("must be superuser to accept an encryption key")]
    MustBeSuperuser,
    #[error("{0}")]
    Trigger(&'static str),
    #[error("colcrypt cannot be loaded during a parallel operation")]
    LoadedTooLate,
    #[error("this database has no index key yet")]
    NoIndexKey { reason: &'static str },
    #[error("this database has no index key yet")]
    IndexKeyToCome,
    #[error("this database has an index key already, for {algorithm}")]
    OtherIndexKey { algorithm: &'static str },
    #[error("managed key {key} is wrapped by key {wrapping}, which is not in the key ring")]
    UnknownWrappingKey { key: KeyId, wrapping: KeyId },
    #[error("managed key {key} could not be unwrapped under key {wrapping}")]
    DamagedKey { key: KeyId, wrapping: KeyId },
    #[error("key table colcrypt.key is not usable: {0}")]
    KeyTable(&'static str),
    #[error("encrypted values have no order")]
    NoOrder,
    #[error("invalid type modifier for an encrypted type")]
    BadTypmod,
    #[error("{0}")]
    Random(RandomError),
    #[error("{what} must be {bound}")]
    Parameter {
        what: &'static str,
        bound: &'static str,
    },
    #[error("relation with OID {0} does not exist")]
    NoRelation(u32),
    #[error("\"{relation}\" is {kind}, not a table")]
    NotTable {
        relation: String,
        kind: &'static str,
        hint: &'static str,
    },
    #[error("\"{relation}\" is not an index")]
    NotIndex { relation: String },
    #[error("cannot access temporary tables of other sessions")]
    OtherTemp,
    #[error("column \"{column}\" of relation \"{relation}\" does not exist")]
    NoColumn { relation: String, column: String },
    #[error(
        "column \"{column}\" of relation \"{relation}\" is of type {actual}, which is not encrypted"
    )]
    WrongType {
        relation: String,
        column: String,
        actual: String,
        hint: &'static str,
    },
    #[error("column \"{column}\" is a generated column")]
    GeneratedColumn { column: String },
    #[error("must be owner of relation {relation}")]
    NotOwner { relation: String },
    #[error("could not serialize access due to concurrent update")]
    Serialization,
    #[error("could not rotate a row of \"{relation}\": {why}")]
    Rotation { relation: String, why: &'static str },
    #[error("a trigger does not let a row of \"{relation}\" be updated")]
    TriggerRefuses { relation: String },
    #[error(
        "the trigger that keeps the columns of \"{relation}\" in step is not there or disabled"
    )]
    OutOfStep { relation: String },
    #[error("a trigger changes a key of a row of \"{relation}\"")]
    TriggerChangesKey { relation: String },
    #[error("{0} cannot run inside a transaction block")]
    InTransaction(&'static str),
    #[error("a background worker does not have the keys of this session")]
    SessionKey,
    #[error("a background worker cannot rotate a temporary table")]
    TemporaryTable,
    #[error("rotation {job} does not exist")]
    NoRotation { job: i32 },
    #[error("rotation {job} is under way in another session")]
    RotationRuns { job: i32 },
    #[error("rotation {job} was {state}")]
    RotationStopped { job: i32, state: String },
    #[error("rotation {job} is one of encrypt_column_online()")]
    Encryption { job: i32 },
    #[error("could not start a background worker")]
    NoWorker,
    #[error("a table of the extension colcrypt is not usable: {0}")]
    OwnTable(&'static str),
}

impl From<Malformed> for Error {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Malformed> for Box<Error> {
    fn from(error: Malformed) -> Self {
        Self::new(error.into())
    }
}

impl From<Box<Error>> for ErrorReport {
    #[track_caller]
    fn from(error: Box<Error>) -> Self {
        Self::from(*error)
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Random(error) => Self::Random(error),
        }
    }
}

impl From<RandomError> for Error {
    fn from(error: RandomError) -> Self {
        Self::Random(error)
    }
}

fn not_loaded(required: bool) -> &'static str {
    if required {
        "colcrypt.require_key is on, but no encryption key could be loaded"
    } else {
        "colcrypt: encryption is not enabled"
    }
}

/// Why values cannot be read that were written a moment ago.
const DEV_MODE_KEY: &str = " With colcrypt.dev_mode every start of the server makes another \
    random key, unless one is configured.";

impl Error {
    /// For a parameter that is NULL.
    pub(crate) fn not_given(what: &'static str) -> Self {
        Self::Parameter {
            what,
            bound: "given",
        }
    }

    /// A parameter that has a least value, 0 or 1.
    ///
    /// # Errors
    /// [`Error::Parameter`] if it is less, or NULL.
    pub(crate) fn at_least(
        least: i64,
        what: &'static str,
        value: Option<i64>,
    ) -> Result<i64, Self> {
        value
            .filter(|value| *value >= least)
            .ok_or(Self::Parameter {
                what,
                bound: if least == 0 { "0 or more" } else { "1 or more" },
            })
    }

    pub(crate) fn damaged(key: KeyId) -> impl FnOnce(OpenError) -> Self {
        move |OpenError| Self::Damaged { key }
    }

    /// Says it as a warning.
    pub(crate) fn warn(self) {
        ErrorReport::from(self).report(PgLogLevel::WARNING);
    }

    /// Raises the error in PostgreSQL.
    #[cold]
    pub(crate) fn raise(self) -> ! {
        ErrorReport::from(self).report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return");
    }

    /// The value, or the error raised. For the hot path: an `ErrorReport` in a
    /// function's result is several hundred bytes to move for every value.
    pub(crate) fn unwrap_or_raise<T>(result: Result<T, impl Into<Box<Self>>>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => error.into().raise(),
        }
    }

    /// Which failure of keys or values it is, if it is one.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::NoKeyRing { .. }
            | Self::UnknownKey { .. }
            | Self::UnknownWrappingKey { .. }
            | Self::UnknownPrimary { .. }
            | Self::DestroyedKey { .. }
            | Self::DestroyedKeyName { .. }
            | Self::ForeignFernetToken => Some(Outcome::WrongKey),
            Self::Damaged { .. }
            | Self::DamagedKey { .. }
            | Self::Malformed
            | Self::NotText { .. }
            | Self::NotJson { .. } => Some(Outcome::Damaged),
            Self::KeyNotGranted { .. }
            | Self::KeyNameNotGranted { .. }
            | Self::Access { .. }
            | Self::CompareNotGranted { .. }
            | Self::CompareColumnNotGranted
            | Self::DumpOfMasks => Some(Outcome::Denied),
            _ => None,
        }
    }

    /// The key that it is about, if it is known by its id.
    pub(crate) fn key(&self) -> Option<KeyId> {
        match self {
            Self::UnknownKey { needed: key, .. }
            | Self::UnknownPrimary { primary: key, .. }
            | Self::UnknownWrappingKey { key, .. }
            | Self::DestroyedKey { key }
            | Self::Damaged { key }
            | Self::DamagedKey { key, .. }
            | Self::NotText { key }
            | Self::NotJson { key }
            | Self::KeyNotGranted { key }
            | Self::CompareNotGranted { key } => Some(*key),
            _ => None,
        }
    }

    pub(crate) fn code(&self) -> PgSqlErrorCode {
        use PgSqlErrorCode as Code;
        match self {
            Self::NoKeyRing { .. }
            | Self::UnknownPrimary { .. }
            | Self::DestroyedKey { .. }
            | Self::DestroyedKeyName { .. }
            | Self::UnknownKey { .. }
            | Self::UnknownWrappingKey { .. }
            | Self::LoadedTooLate
            | Self::OtherIndexKey { .. }
            | Self::IndexKeyToCome
            | Self::SessionKey
            | Self::OutOfStep { .. }
            | Self::NoIndexKey { .. } => Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::Damaged { .. }
            | Self::Malformed
            | Self::DamagedKey { .. }
            | Self::NotText { .. }
            | Self::NotJson { .. }
            | Self::ForeignFernetToken => Code::ERRCODE_DATA_CORRUPTED,
            Self::InvalidLiteral { code, .. } => *code,
            Self::DeepDocument => Code::ERRCODE_STATEMENT_TOO_COMPLEX,
            Self::Unrepresentable => Code::ERRCODE_UNTRANSLATABLE_CHARACTER,
            Self::ReservedPrefix(Wire::Text)
            | Self::BadTextForm {
                wire: Wire::Text, ..
            }
            | Self::BadFernetToken { .. } => Code::ERRCODE_INVALID_TEXT_REPRESENTATION,
            Self::ReservedPrefix(Wire::Binary)
            | Self::BadTextForm {
                wire: Wire::Binary, ..
            } => Code::ERRCODE_INVALID_BINARY_REPRESENTATION,
            Self::NotFernet | Self::BadTypmod | Self::Parameter { .. } => {
                Code::ERRCODE_INVALID_PARAMETER_VALUE
            }
            Self::UnknownKeyName { .. } => Code::ERRCODE_UNDEFINED_OBJECT,
            Self::Random(_) | Self::KeyTable(_) | Self::OwnTable(_) => Code::ERRCODE_INTERNAL_ERROR,
            Self::NotLoaded { .. } => Code::ERRCODE_CONFIG_FILE_ERROR,
            Self::NoSharedMemory(_) => Code::ERRCODE_OUT_OF_MEMORY,
            Self::NoOrder => Code::ERRCODE_FEATURE_NOT_SUPPORTED,
            Self::NoRelation(_) => Code::ERRCODE_UNDEFINED_TABLE,
            Self::NotTable { .. } | Self::NotIndex { .. } => Code::ERRCODE_WRONG_OBJECT_TYPE,
            Self::OtherTemp => Code::ERRCODE_FEATURE_NOT_SUPPORTED,
            Self::NoColumn { .. } => Code::ERRCODE_UNDEFINED_COLUMN,
            Self::WrongType { .. } => Code::ERRCODE_DATATYPE_MISMATCH,
            Self::GeneratedColumn { .. } => Code::ERRCODE_GENERATED_ALWAYS,
            Self::NotOwner { .. }
            | Self::KeyNotGranted { .. }
            | Self::KeyNameNotGranted { .. }
            | Self::Access { .. }
            | Self::CompareNotGranted { .. }
            | Self::CompareColumnNotGranted
            | Self::DumpOfMasks
            | Self::HiddenRows { .. }
            | Self::MustBeSuperuser => Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
            Self::KeyNameExists { .. } | Self::KeyNameClash { .. } => {
                Code::ERRCODE_DUPLICATE_OBJECT
            }
            Self::BadKeyName => Code::ERRCODE_INVALID_NAME,
            Self::Trigger(_) => Code::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            Self::Serialization => Code::ERRCODE_T_R_SERIALIZATION_FAILURE,
            Self::Rotation { .. }
            | Self::TriggerRefuses { .. }
            | Self::TriggerChangesKey { .. }
            | Self::RotationRuns { .. } => Code::ERRCODE_OBJECT_IN_USE,
            Self::InTransaction(_) => Code::ERRCODE_ACTIVE_SQL_TRANSACTION,
            Self::TemporaryTable | Self::Encryption { .. } => Code::ERRCODE_FEATURE_NOT_SUPPORTED,
            Self::NoRotation { .. } => Code::ERRCODE_UNDEFINED_OBJECT,
            Self::RotationStopped { .. } => Code::ERRCODE_QUERY_CANCELED,
            Self::NoWorker => Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::NoKeyRing { reason } => reason.clone(),
            Self::UnknownKey {
                loaded, dev_mode, ..
            } => {
                let ids: Vec<_> = loaded.iter().map(ToString::to_string).collect();
                let why = if *dev_mode { DEV_MODE_KEY } else { "" };
                Some(format!("Keys in the ring: {}.{why}", ids.join(", ")))
            }
            Self::NotLoaded { reason, .. } => {
                let none = || "No source of a key ring is set.".to_owned();
                Some(reason.clone().unwrap_or_else(none))
            }
            Self::UnknownPrimary { remembered, .. } => {
                let ids: Vec<_> = remembered.iter().map(ToString::to_string).collect();
                Some(format!("It was encrypted with: {}.", ids.join(", ")))
            }
            Self::LoadedTooLate => Some("Its settings could not take effect.".to_owned()),
            Self::IndexKeyToCome => Some(
                "A restore or a subscription does not make one: that of its source is to come."
                    .to_owned(),
            ),
            Self::NoIndexKey { reason } => Some((*reason).to_owned()),
            Self::BadTextForm { reason, .. } | Self::BadFernetToken { reason } => {
                let reason = reason.to_string();
                let (first, rest) = reason.split_at(1);
                Some(format!("{}{rest}.", first.to_uppercase()))
            }
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoKeyRing { .. } => {
                "Name a file with the key in colcrypt.key_file, or a command that prints it in \
                 colcrypt.key_command, and reload the configuration, or start the server with \
                 the key in the environment variable that colcrypt.key_env \
                 names (COLCRYPT_KEY), or SET colcrypt.key for this session. \
                 colcrypt.generate_key() makes a key."
            }
            Self::UnknownKey { dev_mode: true, .. } => {
                "Set colcrypt.key_file to a file with a key, so that values can be read again."
            }
            Self::NotLoaded { .. } => {
                "Name a file with the key in colcrypt.key_file, a command that prints it in \
                 colcrypt.key_command, or an environment variable that holds it in \
                 colcrypt.key_env, or set colcrypt.key. \"openssl rand -base64 32\" makes a key."
            }
            Self::UnknownKey { .. } => {
                "Add the key that the value was encrypted with to the key ring, behind the \
                 primary, and reload the configuration."
            }
            Self::Damaged { .. } => {
                "The stored bytes were changed, or were sealed for another type or under another key \
                 with the same id."
            }
            Self::ReservedPrefix(_) => {
                "To load ciphertext that colcrypt made, have a superuser set \
                 colcrypt.input = 'ciphertext', or use from_ciphertext() or its like for the \
                 type."
            }
            Self::BadTextForm { .. } => {
                "Ciphertext starts with colcrypt:v1: and is what ciphertext() prints. \
                 With colcrypt.input = 'ciphertext' nothing else is accepted."
            }
            Self::BadFernetToken { .. } => "A Fernet token is base64url and starts with gAAAAA.",
            Self::ForeignFernetToken => {
                "Add the key that made the token to the key ring, behind the primary."
            }
            Self::NotFernet => {
                "SET colcrypt.algorithm = 'fernet' and encrypt the value again, or rotate the \
                 column."
            }
            Self::UnknownPrimary { .. } => {
                "Put the key that this database was encrypted with into the key ring, behind the \
                 new one, if the new one is meant. If all data under it is to be given up, a \
                 superuser can SELECT colcrypt.accept_key()."
            }
            Self::KeyNameExists { .. } => {
                "SELECT colcrypt.rotate_key() makes a new version of a key."
            }
            Self::KeyNameClash { .. } => "Choose another name.",
            Self::BadKeyName => {
                "A name has 1 to 63 characters of printable ASCII and does not start with \"#\"."
            }
            Self::DestroyedKeyName { .. } => {
                "SELECT colcrypt.create_key() makes a new key of that name, which opens nothing \
                 that was encrypted under the old one."
            }
            Self::DestroyedKey { .. } => "Values under it can never be read again.",
            Self::KeyNotGranted { .. } | Self::KeyNameNotGranted { .. } => {
                "SELECT colcrypt.grant_key() lets a role use it."
            }
            Self::Access { .. } => "The setting is for superusers, by role: ALTER ROLE ... SET.",
            Self::CompareNotGranted { .. } | Self::CompareColumnNotGranted => {
                "SELECT colcrypt.grant_key() lets a role use the key. Values under other keys can \
                 be left out by a condition on another column, or by row-level security."
            }
            Self::HiddenRows { .. } => "Ask as a role that bypasses row-level security.",
            Self::DumpOfMasks => {
                "Run pg_dump as a role that is not masked. The dump holds ciphertext."
            }
            Self::UnknownKeyName { .. } => {
                "SELECT colcrypt.create_key() makes a key. The type modifier of a column, \
                 colcrypt.write_key and encrypt(value, key) name one."
            }
            Self::LoadedTooLate => {
                "Add colcrypt to shared_preload_libraries or session_preload_libraries, or read an \
                 encrypted value in this session first."
            }
            Self::NoIndexKey { .. } => {
                "Comparing encrypted values needs it. SELECT colcrypt.create_index_key() makes it, \
                 in a transaction that can write, on the primary server."
            }
            Self::IndexKeyToCome => {
                "Restore the data of schema colcrypt first, as with pg_restore --data-only \
                 --schema=colcrypt, or publish and subscribe to the table colcrypt.key first."
            }
            Self::OtherIndexKey { .. } => {
                "Indexes are in the order of its tags, so it never changes. In a new database, \
                 create the index key before the first index."
            }
            Self::UnknownWrappingKey { .. } => {
                "Add that key to the key ring, behind the primary, and reload the configuration; \
                 then SELECT colcrypt.rewrap_keys() before you take it out again."
            }
            Self::DamagedKey { .. } => {
                "Its row in colcrypt.key was changed or damaged. Restore the row from a backup."
            }
            Self::NoOrder => {
                "Cast the column to its plain type to compare by plaintext: col::text < 'x', \
                 ORDER BY col::text."
            }
            Self::BadTypmod => {
                "Write the type without a modifier, or with the name of a key: \
                 encrypted_text(name_of_a_key)."
            }
            Self::InvalidLiteral {
                payload: Payload::Bytea,
                ..
            } => {
                "The value is not shown. Bytes are written as \\x and pairs of hex digits, or in \
                 the escape format of bytea."
            }
            Self::DeepDocument => "Increase max_stack_depth, if the platform's limit allows it.",
            Self::InvalidLiteral { .. } => {
                "The value is not shown. It must be a JSON document that jsonb takes."
            }
            Self::NotTable { hint, .. } | Self::WrongType { hint, .. } => hint,
            Self::GeneratedColumn { .. } => "Rotate the column that it is computed from.",
            Self::Rotation { .. } => "Run the rotation again.",
            Self::TriggerRefuses { .. } | Self::TriggerChangesKey { .. } => {
                "With fire_triggers => false it is rotated without them."
            }
            Self::InTransaction(_) => {
                "It commits after each batch. rotate_column() and encrypt_column() do all in one \
                 transaction."
            }
            Self::OutOfStep { .. } => "SELECT abort_encrypt_column() and begin again.",
            Self::SessionKey => "CALL rotate_column_online(), or RESET colcrypt.key.",
            Self::Encryption { .. } => "CALL encrypt_column_online() again to go on.",
            Self::TemporaryTable => "rotate_column() rotates it in this session.",
            Self::NoRotation { .. } => "The view colcrypt.rotation_progress lists the rotations.",
            Self::RotationRuns { .. } => {
                "The view colcrypt.rotation_progress tells how far it is. \
                 SELECT colcrypt.pause_rotation() or colcrypt.cancel_rotation() ends it."
            }
            Self::RotationStopped { .. } => {
                "What it has done is done. Call rotate_column_online() again to go on."
            }
            Self::NoWorker => {
                "Increase max_worker_processes and restart the server, or CALL \
                 rotate_column_online()."
            }
            _ => return None,
        };
        (!hint.is_empty()).then(|| hint.to_owned())
    }
}

impl From<Error> for ErrorReport {
    #[track_caller]
    fn from(error: Error) -> Self {
        let mut report = Self::new(error.code(), error.to_string(), "colcrypt");
        if let Some(detail) = error.detail() {
            report = report.set_detail(detail);
        }
        if let Some(hint) = error.hint() {
            report = report.set_hint(hint);
        }
        report
    }
}
