//! The access rule of a route, and the table of all routes that the authorization reads.

use std::collections::HashMap;

use actix_web::http::Method;

use crate::core::identity::Scope;

/// The callers that a route is open to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every client, with or without a key.
    Public,
    /// Callers with any valid key.
    Key,
    /// Callers whose key has the scope.
    Scope(Scope),
}

/// The access of every route, by path pattern and method.
pub(super) struct AccessTable(HashMap<&'static str, Vec<(Method, Access)>>);

impl AccessTable {
    /// Makes the table of these routes: path pattern, method and access.
    pub fn new(routes: impl IntoIterator<Item = (&'static str, Method, Access)>) -> Self {
        let mut table: HashMap<&'static str, Vec<(Method, Access)>> = HashMap::new();
        for (path, method, access) in routes {
            table.entry(path).or_default().push((method, access));
        }
        Self(table)
    }

    /// Returns the access of a request; `None`: there is no such path, or it does not have this method. HEAD has the
    /// access of GET. A wrong method on a path that is public for all its methods is answered without a key, too.
    pub fn get(&self, pattern: &str, method: &Method) -> Option<Access> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let methods = self.0.get(pattern)?;
        let exact = methods.iter().find(|(known, _)| known == method).map(|(_, access)| *access);
        let is_public = methods.iter().all(|(_, access)| *access == Access::Public);
        exact.or(is_public.then_some(Access::Public))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_that_a_path_lacks_is_public_only_on_public_paths() {
        let table = AccessTable::new([
            ("/health", Method::GET, Access::Public),
            ("/keys", Method::GET, Access::Scope(Scope::KeysRead)),
            ("/keys", Method::POST, Access::Scope(Scope::KeysWrite)),
        ]);

        for (path, method, access) in [
            ("/health", Method::GET, Some(Access::Public)),
            ("/health", Method::HEAD, Some(Access::Public)),
            ("/health", Method::POST, Some(Access::Public)),
            ("/keys", Method::HEAD, Some(Access::Scope(Scope::KeysRead))),
            ("/keys", Method::POST, Some(Access::Scope(Scope::KeysWrite))),
            ("/keys", Method::DELETE, None),
            ("/other", Method::GET, None),
        ] {
            assert_eq!(table.get(path, &method), access, "{method} {path}");
        }
    }
}
