//! The restart policy: whether the process of an instance is started again after it ends. `observe` applies it.

use crate::core::text_enum::text_enum;

text_enum! {
    /// Whether an instance's process is started again after it ends.
    #[derive(Default)]
    pub enum RestartPolicy as RestartPolicy {
        /// The instance stays stopped.
        #[default]
        No = "no",
        /// The process is started again after an exit code other than 0.
        OnFailure = "on_failure",
        /// The process is always started again.
        Always = "always",
    }
}
