//! Which waiting step the engine takes next. Pure.
