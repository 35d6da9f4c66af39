//! AMX-int8.
pub(super) fn is_available() -> bool {
    false
}
