//! One page of a list: newest first, by id (time-ordered), so that it is stable while rows are added.

use data_encoding::BASE64URL_NOPAD;
use uuid::Uuid;

/// Which page: at most `limit` items older than `before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    pub limit: usize,
    pub before: Option<Uuid>,
}

impl PageRequest {
    pub const DEFAULT: usize = 50;
    pub const MAX: usize = 500;

    /// How many rows to ask for: one more than shown tells whether there is a next page.
    pub fn rows(&self) -> i64 {
        i64::try_from(self.limit.saturating_add(1)).unwrap_or(i64::MAX)
    }

    /// Cuts `items` to the page; answers the next page's cursor, if there is one.
    pub fn finish<T>(&self, mut items: Vec<T>, id: impl Fn(&T) -> Uuid) -> Page<T> {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let next_cursor = items.last().filter(|_| more).map(|item| cursor(id(item)));
        Page { items, next_cursor }
    }
}

#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

fn cursor(id: Uuid) -> String {
    BASE64URL_NOPAD.encode(id.as_bytes())
}

/// Reads a cursor of ours; `None` for anything else.
pub fn parse_cursor(text: &str) -> Option<Uuid> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    Uuid::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_item_leads_to_the_next_page_only_when_there_is_one() {
        let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        let page = PageRequest { limit: 2, before: None }.finish(ids.clone(), |id| *id);
        assert_eq!(page.items, ids[..2]);
        assert_eq!(page.next_cursor.as_deref().and_then(parse_cursor), Some(ids[1]));
        assert_eq!(PageRequest { limit: 3, before: None }.finish(ids, |id| *id).next_cursor, None);
        assert_eq!(parse_cursor("%%%"), None);
    }
}
