//! When to count: the control program, run on each CPU in turn.

use aya::{RawTracePointRunOptions, TestRun, maps::Array, programs::RawTracePoint};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tracer_abi::abi::ControlOp;

use super::{
    Probe, ProbeError,
    load::{map, typed},
};

impl Probe {
    /// From here on every connection under way is remembered as an earlier one.
    ///
    /// # Errors
    /// If the control program cannot be run.
    pub fn remember(&mut self) -> Result<(), ProbeError> {
        self.on_each_cpu(&[(ControlOp::Remember, 0)])
    }

    /// All listeners and half-open requests have been seen: what was established by now is earlier. Not sooner: until its listener is
    /// known, nobody remembers a connection that is established under way.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn stock_taken(&mut self) -> Result<(), ProbeError> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let mut epoch: Array<_, u64> = map(&mut self.ebpf, "EPOCH")?;
        epoch.set(0, now_ns, 0).map_err(|e| ProbeError::Map { map: "EPOCH", reason: e.to_string() })
    }

    /// From here on packets are counted.
    ///
    /// # Errors
    /// If the control program cannot be run.
    pub fn count(&mut self) -> Result<(), ProbeError> {
        let mut ops = self.each_namespace(ControlOp::BeginNet)?;
        ops.push((ControlOp::Count, 0));
        self.on_each_cpu(&ops)
    }

    /// Ends counting, and takes the kernel's counters as they are then.
    ///
    /// # Errors
    /// If the control program cannot be run.
    pub fn end(&mut self) -> Result<(), ProbeError> {
        let mut ops = self.each_namespace(ControlOp::EndNet)?;
        ops.push((ControlOp::End, 0));
        self.on_each_cpu(&ops)
    }

    /// Has the kernel side read the queues of the listener in this slot.
    ///
    /// # Errors
    /// If the control program cannot be run.
    pub fn read_queues(&mut self, slot: u32) -> Result<(), ProbeError> {
        let cpu = self.cpus[0];
        self.run(cpu, ControlOp::Queues, u64::from(slot))
    }

    /// The operation for each namespace that is followed.
    fn each_namespace(&mut self, op: ControlOp) -> Result<Vec<(ControlOp, u64)>, ProbeError> {
        let failed = |e: aya::maps::MapError| ProbeError::Map { map: "NET_LIST", reason: e.to_string() };
        let numbers = self.net_numbers()?;
        let list: Array<_, u64> = map(&mut self.ebpf, "NET_LIST")?;
        let addresses = numbers.map(|number| list.get(&number, 0).map_err(failed));
        addresses.filter(|address| !matches!(address, Ok(0))).map(|address| Ok((op, address?))).collect()
    }

    /// Runs the control program on each CPU from process context: the thread moves there, instead of sending an interrupt,
    /// which could come in the middle of a packet.
    fn on_each_cpu(&mut self, ops: &[(ControlOp, u64)]) -> Result<(), ProbeError> {
        let failed = |cpu, e: rustix::io::Errno| ProbeError::Control { cpu, reason: e.to_string() };
        let before = sched_getaffinity(None).map_err(|e| failed(0, e))?;
        let mut result = Ok(());
        for cpu in self.cpus.clone() {
            let mut one = CpuSet::new();
            one.set(cpu);
            result = match sched_setaffinity(None, &one) {
                Ok(()) => ops.iter().try_for_each(|(op, argument)| self.run(cpu, *op, *argument)),
                Err(e) => Err(failed(cpu, e)),
            };
            if result.is_err() {
                break;
            }
        }
        sched_setaffinity(None, &before).map_err(|e| failed(0, e))?;
        result
    }

    pub(super) fn run(&mut self, cpu: usize, op: ControlOp, argument: u64) -> Result<(), ProbeError> {
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = op as u64;
        options.args[1] = argument;
        let control: &mut RawTracePoint = typed(&mut self.ebpf, "control")?;
        control.test_run(options).map_err(|e| ProbeError::Control { cpu, reason: e.to_string() })?;
        Ok(())
    }
}
