//! One page of a list: newest first, by id (time-ordered), so that it is stable while rows are added.
//!
//! It ends after `limit` items, or before `BYTES_MAX` of answer: four readers of 500 instances with large environments would
//! otherwise take gigabytes. Where rows are large, the statement itself ends the page: each row carries the size of the
//! answer up to its end (`page_bytes`, a running sum over the page), and rows after the first one that is too many are not
//! sent by Postgres.

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
    /// Of an answer, as far as it is foreseen: a page with more than one item is not larger.
    pub const BYTES_MAX: i32 = 1024 * 1024;

    /// How many rows to ask for: one more than shown tells whether there is a next page.
    pub fn rows(&self) -> i64 {
        i64::try_from(self.limit.saturating_add(1)).unwrap_or(i64::MAX)
    }

    /// Cuts rows, each an item and its `page_bytes`, to the page; with the next page's cursor, if there is one. A page has
    /// at least one item, whatever its size.
    pub fn finish<T>(&self, rows: Vec<(T, i64)>, id: impl Fn(&T) -> Uuid) -> Page<T> {
        let fits = |(n, page_bytes): (usize, i64)| n == 0 || page_bytes <= i64::from(Self::BYTES_MAX);
        let sizes = rows.iter().map(|(_, page_bytes)| *page_bytes).take(self.limit).enumerate();
        let shown = sizes.take_while(|row| fits(*row)).count();
        let more = rows.len() > shown;
        let items: Vec<T> = rows.into_iter().take(shown).map(|(item, _)| item).collect();
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
        let page = |limit: usize| {
            let rows = ids.iter().map(|id| (*id, 0)).collect();
            PageRequest { limit, before: None }.finish(rows, |id| *id)
        };
        assert_eq!(page(2).items, ids[..2]);
        assert_eq!(page(2).next_cursor.as_deref().and_then(parse_cursor), Some(ids[1]));
        assert_eq!(page(3).next_cursor, None);
        assert_eq!(parse_cursor("%%%"), None);
    }

    #[test]
    fn page_ends_before_it_is_too_large() {
        let most = i64::from(PageRequest::BYTES_MAX);
        for (sizes, shown) in [
            (&[most / 2, most / 2, 1][..], 2),
            (&[most / 2, most, 1], 1),
            (&[1, 1, 1], 3),
            // One is always given.
            (&[most + 1, 1], 1),
            (&[most + 1], 1),
            (&[], 0),
        ] {
            let mut page_bytes = 0;
            let rows = sizes.iter().map(|bytes| {
                page_bytes += bytes;
                (Uuid::now_v7(), page_bytes)
            });

            let page = PageRequest { limit: 10, before: None }.finish(rows.collect(), |id| *id);

            assert_eq!((page.items.len(), page.next_cursor.is_some()), (shown, shown < sizes.len()), "{sizes:?}");
        }
    }
}
