//! `encrypted_text`: a text that is encrypted wherever it is stored.

mod cast;
mod functions;
mod io;
mod typmod;

use crate::types::datum::{SqlType, Varlena, VarlenaBuf};

/// Marks values of `encrypted_text`.
pub(crate) struct EncryptedTextType;
/// Marks values of `text`.
pub(crate) struct TextType;
/// Marks values of `bytea`.
pub(crate) struct ByteaType;

impl SqlType for EncryptedTextType {
    const NAME: &'static str = "encrypted_text";
}
impl SqlType for TextType {
    const NAME: &'static str = "text";
}
impl SqlType for ByteaType {
    const NAME: &'static str = "bytea";
}

/// Stored bytes of an argument.
pub(crate) type EncryptedText<'a> = Varlena<'a, EncryptedTextType>;
/// Stored bytes of a result.
pub(crate) type EncryptedTextBuf = VarlenaBuf<EncryptedTextType>;
type Text<'a> = Varlena<'a, TextType>;
type TextBuf = VarlenaBuf<TextType>;
type ByteaBuf = VarlenaBuf<ByteaType>;
