//! The cache of keys: what is not accepted, when, and what happens when parts of it fail.

mod lua;
