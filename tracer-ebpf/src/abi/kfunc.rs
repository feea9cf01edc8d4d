//! Calls of kernel functions that only newer kernels let programs call (kfuncs).
//!
//! Such a call names the function by its number in the running kernel's type information, which is not known when the programs are
//! built. So the object has calls of helpers with numbers that no kernel has, and the collector makes of them what this kernel can
//! do before it loads the object.

/// A kernel function; the number stands for it in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kfunc {
    /// `void bpf_preempt_disable(void)` (6.10).
    PreemptDisable = 0x7ffe_0000,
    /// `void bpf_preempt_enable(void)` (6.10).
    PreemptEnable = 0x7ffe_0001,
    /// `void bpf_local_irq_save(unsigned long *flags)` (6.14).
    LocalIrqSave = 0x7ffe_0002,
    /// `void bpf_local_irq_restore(unsigned long *flags)` (6.14).
    LocalIrqRestore = 0x7ffe_0003,
    /// `void *bpf_rdonly_cast(const void *obj, u32 btf_id)` (6.2): the address, as one of a structure, or of
    /// anything at all with type 0 (6.17).
    RdonlyCast = 0x7ffe_0004,
}

/// Number of kernel functions.
pub const KFUNCS: usize = 5;

impl Kfunc {
    /// All of them.
    pub const ALL: [Kfunc; KFUNCS] =
        [Kfunc::PreemptDisable, Kfunc::PreemptEnable, Kfunc::LocalIrqSave, Kfunc::LocalIrqRestore, Kfunc::RdonlyCast];

    /// Those that it takes to disable preemption, all or none.
    pub const PREEMPTION: [Kfunc; 4] =
        [Kfunc::PreemptDisable, Kfunc::PreemptEnable, Kfunc::LocalIrqSave, Kfunc::LocalIrqRestore];

    /// Its name in the kernel.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kfunc::PreemptDisable => "bpf_preempt_disable",
            Kfunc::PreemptEnable => "bpf_preempt_enable",
            Kfunc::LocalIrqSave => "bpf_local_irq_save",
            Kfunc::LocalIrqRestore => "bpf_local_irq_restore",
            Kfunc::RdonlyCast => "bpf_rdonly_cast",
        }
    }

    /// The function that a call with this number stands for.
    #[must_use]
    pub fn of_mark(number: u32) -> Option<Kfunc> {
        Kfunc::ALL.into_iter().find(|it| *it as u32 == number)
    }
}
