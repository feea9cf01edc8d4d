//! Calls of kernel functions in the object, which aya does not know: made into what this kernel can do, before aya gets it.
//!
//! See `tracer-ebpf/src/abi/kfunc.rs` for what the object has in their place. Where a function cannot be called, nothing is done
//! instead: a call leaves no register but its result to rely on, so that an assignment to that may stand for it.

use std::ops::Range;

use tracer_abi::abi::Kfunc;
use zerocopy::IntoBytes as _;

/// An object file, aligned as its headers have to be.
pub(super) struct Object {
    words: Vec<u64>,
    length: usize,
}

impl Object {
    fn copy(bytes: &[u8]) -> Object {
        let mut words = vec![0u64; bytes.len().div_ceil(size_of::<u64>())];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Object { words, length: bytes.len() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.words.as_mut_bytes()[..self.length]
    }
}

/// The object with calls of the functions that have a number. What is no object is left to aya to refuse.
pub(super) fn resolved(object: &[u8], number: &dyn Fn(Kfunc) -> Option<u32>) -> Object {
    let mut copy = Object::copy(object);
    for section in code(object).unwrap_or_default() {
        if let Some(instructions) = copy.bytes_mut().get_mut(section) {
            resolve(instructions, number);
        }
    }
    copy
}

/// Length of an instruction.
const INSTRUCTION: usize = 8;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the upper half of an instruction's second byte: the number is a kernel function's. There is 0 where it is
/// a helper's.
const KERNEL_FUNCTION: u8 = 2 << 4;
/// `BPF_ALU64 | BPF_MOV | BPF_K` with the result's register and 0.
const RESULT_IS_ZERO: [u8; INSTRUCTION] = [0xb7, 0, 0, 0, 0, 0, 0, 0];

fn resolve(section: &mut [u8], number: &dyn Fn(Kfunc) -> Option<u32>) {
    for instruction in section.chunks_exact_mut(INSTRUCTION) {
        let Some(kfunc) = marked(instruction) else { continue };
        match number(kfunc) {
            Some(number) => {
                instruction[1] = KERNEL_FUNCTION;
                instruction[4..].copy_from_slice(&number.to_le_bytes());
            }
            None => instruction.copy_from_slice(&RESULT_IS_ZERO),
        }
    }
}

/// The function that this instruction is to call, if it is one of ours.
fn marked(instruction: &[u8]) -> Option<Kfunc> {
    let (head, number) = instruction.split_first_chunk()?;
    let number = u32::from_le_bytes(*number.first_chunk()?);
    if *head == [CALL, 0, 0, 0] { Kfunc::of_mark(number) } else { None }
}

/// Where an ELF file of 64 bits and this byte order has its sections with instructions.
fn code(object: &[u8]) -> Option<Vec<Range<usize>>> {
    const PROGBITS: u64 = 1;
    const EXECINSTR: u64 = 4;
    let number = |at: usize, length: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(object.get(at..at.checked_add(length)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let table = usize::try_from(number(0x28, 8)?).ok()?;
    let (size, count) = (number(0x3a, 2)? as usize, number(0x3c, 2)? as usize);
    let mut sections = Vec::new();
    for header in (0..count).map(|i| table.checked_add(i * size)) {
        let header = header?;
        let field = |at: usize, length: usize| number(header.checked_add(at)?, length);
        if field(4, 4)? == PROGBITS && field(8, 8)? & EXECINSTR != 0 {
            let from = usize::try_from(field(0x18, 8)?).ok()?;
            sections.push(from..from.checked_add(usize::try_from(field(0x20, 8)?).ok()?)?);
        }
    }
    Some(sections)
}

#[cfg(test)]
mod tests {
    use tracer_abi::abi::KFUNCS;

    use super::{super::load::OBJECT, *};

    const NUMBERS: [u32; KFUNCS] = [65_280, 65_282, 64_474, 64_472, 65_300];

    fn number(kfunc: Kfunc) -> Option<u32> {
        Kfunc::ALL.into_iter().zip(NUMBERS).find(|(it, _)| *it == kfunc).map(|(_, number)| number)
    }

    fn none(_: Kfunc) -> Option<u32> {
        None
    }
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    fn call(kind: u8, number: u32) -> [u8; 8] {
        let n = number.to_le_bytes();
        [CALL, kind, 0, 0, n[0], n[1], n[2], n[3]]
    }

    /// A program that calls all functions, and a helper.
    fn program(kind: u8, numbers: [u32; KFUNCS]) -> Vec<u8> {
        let [a, b, c, d, e] = numbers.map(|number| call(kind, number));
        [a, call(0, 113), b, c, d, e, EXIT].concat()
    }

    const MARKS: [u32; KFUNCS] = [0x7ffe_0000, 0x7ffe_0001, 0x7ffe_0002, 0x7ffe_0003, 0x7ffe_0004];

    #[test]
    fn marked_calls_become_calls_of_the_kernels_functions() {
        let mut section = program(0, MARKS);
        resolve(&mut section, &number);
        assert_eq!(section, program(KERNEL_FUNCTION, NUMBERS));
    }

    #[test]
    fn without_the_functions_marked_calls_become_nothing() {
        let mut section = program(0, MARKS);
        resolve(&mut section, &none);
        let nothing = RESULT_IS_ZERO;
        assert_eq!(section, [nothing, call(0, 113), nothing, nothing, nothing, nothing, EXIT].concat());
    }

    #[test]
    fn other_kinds_of_calls_with_the_same_number_are_left_alone() {
        for kind in [1 << 4, KERNEL_FUNCTION] {
            let mut section = program(kind, MARKS);
            resolve(&mut section, &none);
            assert_eq!(section, program(kind, MARKS));
        }
    }

    fn marks(object: &[u8]) -> usize {
        let instructions = code(object).unwrap().into_iter().flat_map(|it| object[it].chunks_exact(INSTRUCTION));
        instructions.filter(|it| marked(it).is_some()).count()
    }

    #[test]
    fn no_mark_is_left_in_the_object_and_nothing_else_is_changed() {
        let all = marks(OBJECT);
        assert!(all >= 15 * KFUNCS, "{all}: there are fifteen programs that can run in processes");
        for numbers in [number, none] {
            let resolved = resolved(OBJECT, &numbers);
            assert_eq!(resolved.bytes().len(), OBJECT.len());
            assert_eq!(marks(resolved.bytes()), 0);
            let instructions = OBJECT.chunks_exact(INSTRUCTION).zip(resolved.bytes().chunks_exact(INSTRUCTION));
            assert_eq!(instructions.filter(|(one, other)| one != other).count(), all);
        }
    }

    #[test]
    fn what_is_no_object_is_passed_on_as_it_is() {
        for bytes in [&b""[..], b"\x7fELF", &[0xff; 100]] {
            assert_eq!(resolved(bytes, &number).bytes(), bytes);
        }
    }
}
