//! Clients that cost time, and what others notice of them.
