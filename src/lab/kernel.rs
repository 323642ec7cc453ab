//! The kernel engine without NICs: its programs are loaded, and run by BPF_PROG_RUN.

use super::LabError;
use exitmark_datapath::{Buffers, Form, IncomingLink, Kernel, Links, PerRole, Role};
use exitmark_policy::Snapshot;

/// The interface index of loopback. A device map requires an existing interface; nothing is sent.
const LOOPBACK: u32 = 1;
/// The longest frame that every port takes, in bytes.
const LONGEST: u32 = 9014;

pub(crate) fn because(error: impl std::fmt::Display) -> LabError {
    LabError(error.to_string())
}

/// Loads the programs in the calling thread's namespace, without attaching them.
pub(crate) fn load(buffers: Buffers) -> Result<Kernel, LabError> {
    load_as(Form {
        buffers,
        ..Form::WHOLE
    })
}

fn load_as(form: Form) -> Result<Kernel, LabError> {
    let kernel = Kernel::load_as(form).map_err(because)?;
    for role in Role::ALL {
        kernel.set_port(role, Some(LOOPBACK)).map_err(because)?;
    }
    Ok(kernel)
}

/// The loaded programs with a policy and links.
pub struct KernelEngine {
    /// The programs and their maps.
    pub kernel: Kernel,
    /// The links, with redirects allowed at every port.
    pub links: Links,
}

impl KernelEngine {
    /// Loads the programs in the calling thread's namespace, without attaching them.
    ///
    /// # Errors
    /// Fails without privilege, or if the kernel rejects a program or the policy.
    pub fn new(
        buffers: Buffers,
        snapshot: &Snapshot,
        incoming: Option<IncomingLink>,
    ) -> Result<Self, LabError> {
        Self::over(load(buffers)?, snapshot, incoming)
    }

    /// As [`KernelEngine::new`], with the programs in this form.
    ///
    /// # Errors
    /// As [`KernelEngine::new`].
    pub fn of_form(
        form: Form,
        snapshot: &Snapshot,
        incoming: Option<IncomingLink>,
    ) -> Result<Self, LabError> {
        Self::over(load_as(form)?, snapshot, incoming)
    }

    fn over(
        kernel: Kernel,
        snapshot: &Snapshot,
        incoming: Option<IncomingLink>,
    ) -> Result<Self, LabError> {
        kernel.publish(snapshot).map_err(because)?;
        let links = Links::over(kernel.links().map_err(because)?, incoming);
        links.allow_redirects(PerRole::from_fn(|_| true), LONGEST);
        Ok(Self { kernel, links })
    }
}
