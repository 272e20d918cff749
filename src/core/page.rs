//! One page of a list: newest first, by id, so that it stays stable while rows are added (ids are ordered by time).
//!
//! A page ends after `limit` items, or before its answer exceeds `BYTES_MAX`: four readers of 500 instances with large
//! environments would otherwise take gigabytes. Where rows are large, the statement ends the page itself: each row has the
//! size of the answer up to its end (`page_bytes`, a running sum over the page), and Postgres does not send the rows after
//! the first one that does not fit.
//!
//! A row that cannot be read is logged and left out. It still counts for the page's end and for the cursor, so that a client
//! which follows the cursors reads every other row.

use data_encoding::BASE64URL_NOPAD;
use uuid::Uuid;

use super::db::{DbError, Row, column, decode_or_skip};

/// The position of a page: at most `limit` items older than `before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The number of items at most.
    pub limit: usize,
    /// The id that those of the page are smaller than; `None`: the first page.
    pub before: Option<Uuid>,
}

impl PageRequest {
    /// The limit where a request names none.
    pub const DEFAULT: usize = 50;
    /// The largest limit.
    pub const MAX: usize = 500;
    /// The size of an answer in bytes, as far as it can be estimated: a page with more than one item is not larger.
    pub const BYTES_MAX: i32 = 1024 * 1024;

    /// Returns how many rows to read: one more than the limit, which shows whether there is a next page.
    pub fn rows(&self) -> i64 {
        i64::try_from(self.limit.saturating_add(1)).unwrap_or(i64::MAX)
    }

    /// Makes a page of rows that have an `id` and a `page_bytes`. A row that `decode` cannot read is logged and left out.
    ///
    /// # Errors
    /// `Invariant` when a row has no `id` or no `page_bytes`.
    pub fn decode<T>(
        &self,
        rows: &[Row],
        noun: &'static str,
        decode: impl Fn(&Row) -> Result<T, DbError>,
    ) -> Result<Page<T>, DbError> {
        let sized = |row| {
            let item = decode_or_skip(row, noun, &decode);
            Ok(((column::<Uuid>(row, "id")?, item), column(row, "page_bytes")?))
        };
        let rows = rows.iter().map(sized).collect::<Result<Vec<_>, DbError>>()?;
        let page = self.finish(rows, |(id, _)| *id);
        let items = page.items.into_iter().filter_map(|(_, item)| item).collect();
        Ok(Page { items, next_cursor: page.next_cursor })
    }

    /// Cuts rows, each an item and its `page_bytes`, to the page, and adds the cursor of the next page if there is one. A page
    /// has at least one item, whatever its size.
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

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Its items, newest first.
    pub items: Vec<T>,
    /// The cursor of the next page; `None`: this is the last one.
    pub next_cursor: Option<String>,
}

fn cursor(id: Uuid) -> String {
    BASE64URL_NOPAD.encode(id.as_bytes())
}

/// Reads a cursor that `finish` made; `None` for any other text.
pub fn parse_cursor(text: &str) -> Option<Uuid> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    Uuid::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_item_is_the_cursor_only_when_more_follow() {
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
