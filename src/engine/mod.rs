//! The engine: runs a unit range of a model on candle, on its own threads.
