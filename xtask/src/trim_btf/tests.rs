use super::*;
use crate::trim_btf::format::Writer;

/// A kernel in small: each function of it adds types and returns their numbers.
struct Kernel {
    writer: Writer,
    types: u32,
}

impl Kernel {
    fn new() -> Self {
        Self { writer: Writer::new(), types: 0 }
    }

    fn add(&mut self, kind: Kind, name: &str, head: u32, words: &[u32]) -> u32 {
        self.add_items(kind, false, 0, name, head, words)
    }

    fn add_items(&mut self, kind: Kind, kind_flag: bool, vlen: u16, name: &str, head: u32, words: &[u32]) -> u32 {
        let name = self.writer.name(name);
        self.writer.push(&Type { kind, kind_flag, vlen, name, head, words: words.to_vec() });
        self.types += 1;
        self.types
    }

    /// A structure or union from names, types and offsets in bits.
    fn aggregate(&mut self, kind: Kind, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let words: Vec<u32> = members.iter().flat_map(|(name, of, at)| [self.writer.name(name), *of, *at]).collect();
        self.add_items(kind, true, members.len() as u16, name, size, &words)
    }

    fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) -> u32 {
        let words: Vec<u32> = values.iter().flat_map(|(name, value)| [self.writer.name(name), *value]).collect();
        self.add_items(Kind::Enum, false, values.len() as u16, name, 4, &words)
    }

    fn tracepoint(&mut self, name: &str, parameters: &[u32]) {
        let words: Vec<u32> = parameters.iter().flat_map(|parameter| [0, *parameter]).collect();
        let prototype = self.add_items(Kind::FuncProto, false, parameters.len() as u16, "", 0, &words);
        let pointer = self.add(Kind::Ptr, "", prototype, &[]);
        self.add(Kind::Typedef, &format!("btf_trace_{name}"), pointer, &[]);
    }

    fn function(&mut self, name: &str, result: u32, parameters: &[(&str, u32)]) {
        let words: Vec<u32> = parameters.iter().flat_map(|(name, of)| [self.writer.name(name), *of]).collect();
        let prototype = self.add_items(Kind::FuncProto, false, parameters.len() as u16, "", result, &words);
        self.add(Kind::Func, name, prototype, &[]);
    }

    fn trimmed(self) -> (Btf, Vec<String>) {
        let Trimmed { bytes, absent } = trim(&Btf::read(&self.writer.finish()).unwrap());
        (Btf::read(&bytes).unwrap(), absent)
    }
}

fn find<'a>(btf: &'a Btf, kind: Kind, name: &str) -> Option<&'a Type> {
    named(btf, kind, name).map(|(_, t)| t).next()
}

fn members<'a>(btf: &'a Btf, t: &'a Type) -> Vec<(&'a str, u32)> {
    t.items().map(|member| (btf.name(member[0]), member[2])).collect()
}

#[test]
fn a_wanted_structure_keeps_all_members_offsets_and_bit_fields() {
    let mut kernel = Kernel::new();
    let int = kernel.add(Kind::Int, "int", 4, &[32]);
    let pair = kernel.aggregate(Kind::Struct, "", 8, &[("skc_daddr", int, 0), ("skc_rcv_saddr", int, 32)]);
    let either = kernel.aggregate(Kind::Union, "", 8, &[("skc_addrpair", int, 0), ("", pair, 0)]);
    kernel.aggregate(Kind::Struct, "sock_common", 16, &[("", either, 0), ("skc_reuse", int, 4 << 24 | 64)]);
    let (btf, _) = kernel.trimmed();
    let strukt = find(&btf, Kind::Struct, "sock_common").unwrap();
    assert_eq!((strukt.head, strukt.kind_flag), (16, true));
    assert_eq!(members(&btf, strukt), [("", 0), ("skc_reuse", 4 << 24 | 64)]);
    // What has no name is part of the structure around it, to any depth.
    let either = btf.get(strukt.items().next().unwrap()[1]).unwrap();
    assert_eq!(members(&btf, either), [("skc_addrpair", 0), ("", 0)]);
    let pair = btf.get(either.items().nth(1).unwrap()[1]).unwrap();
    assert_eq!(members(&btf, pair), [("skc_daddr", 0), ("skc_rcv_saddr", 32)]);
}

#[test]
fn an_embedded_structure_keeps_its_members_only_on_the_way_to_a_field() {
    let mut kernel = Kernel::new();
    let int = kernel.add(Kind::Int, "int", 4, &[32]);
    let ns = kernel.aggregate(Kind::Struct, "ns_common", 8, &[("stashed", int, 0), ("inum", int, 32)]);
    let alias = kernel.add(Kind::Typedef, "ns_t", ns, &[]);
    let work = kernel.aggregate(Kind::Struct, "work_struct", 32, &[("data", int, 0)]);
    let works = kernel.add(Kind::Array, "", 0, &[work, int, 2]);
    kernel.aggregate(Kind::Struct, "net", 72, &[("ns", alias, 0), ("works", works, 64)]);
    let (btf, _) = kernel.trimmed();
    assert_eq!(members(&btf, find(&btf, Kind::Struct, "ns_common").unwrap()), [("stashed", 0), ("inum", 32)]);
    let work = find(&btf, Kind::Struct, "work_struct").unwrap();
    assert_eq!((work.head, work.vlen), (32, 0), "the size stays");
    assert_eq!(btf.types().find(|(_, t)| t.kind == Kind::Array).unwrap().1.words[2], 2);
}

#[test]
fn behind_a_pointer_only_names_are_left() {
    let mut kernel = Kernel::new();
    let int = kernel.add(Kind::Int, "int", 4, &[32]);
    let prototype = kernel.add_items(Kind::FuncProto, false, 1, "", int, &[0, int]);
    let inode = kernel.aggregate(Kind::Struct, "inode", 8, &[("i_ino", int, 0)]);
    let ops = kernel.aggregate(Kind::Struct, "file_operations", 8, &[("flags", int, 0)]);
    let constant = kernel.add(Kind::Const, "", ops, &[]);
    let [to_inode, to_ops, to_function] =
        [inode, constant, prototype].map(|target| kernel.add(Kind::Ptr, "", target, &[]));
    kernel.aggregate(
        Kind::Struct,
        "file",
        24,
        &[("f_inode", to_inode, 0), ("f_op", to_ops, 64), ("private_data", to_function, 128)],
    );
    let (btf, _) = kernel.trimmed();
    let file = find(&btf, Kind::Struct, "file").unwrap();
    let target = |member: usize| {
        let pointer = btf.get(file.items().nth(member).unwrap()[1]).unwrap();
        assert_eq!(pointer.kind, Kind::Ptr);
        btf.get(pointer.head)
    };
    assert_eq!(target(0), find(&btf, Kind::Struct, "inode"), "a wanted structure is kept for itself");
    let behind_const = btf.get(target(1).unwrap().head).unwrap();
    assert_eq!((behind_const.kind, btf.name(behind_const.name)), (Kind::Fwd, "file_operations"));
    assert_eq!(target(2), None, "a function is void");
}

#[test]
fn the_counters_and_the_drop_reasons_are_kept_and_other_enumerations_are_not() {
    let mut kernel = Kernel::new();
    let all: Vec<_> = Counter::ALL.iter().enumerate().map(|(i, c)| (c.enumerator(), 100 + i as u32)).collect();
    kernel.enumeration("other", &[("OTHER", 1)]);
    kernel.enumeration("", &all);
    kernel.enumeration("skb_drop_reason", &[("SKB_NOT_DROPPED_YET", 0), ("SKB_DROP_REASON_NO_SOCKET", 3)]);
    let (btf, absent) = kernel.trimmed();
    assert_eq!(find(&btf, Kind::Enum, "other"), None);
    let counters = find(&btf, Kind::Enum, "").unwrap();
    assert_eq!(counters.items().map(|item| (btf.name(item[0]), item[1])).collect::<Vec<_>>(), all);
    let reasons = find(&btf, Kind::Enum, "skb_drop_reason").unwrap();
    assert_eq!(reasons.items().map(|item| item[1]).collect::<Vec<_>>(), [0, 3]);
    assert!(!absent.iter().any(|what| what.starts_with("LINUX_MIB") || what.contains("skb_drop_reason")), "{absent:?}");
}

#[test]
fn a_tracepoint_keeps_the_number_and_types_of_its_arguments() {
    let mut kernel = Kernel::new();
    let skb = kernel.aggregate(Kind::Struct, "sk_buff", 8, &[]);
    let reason = kernel.enumeration("skb_drop_reason", &[("SKB_NOT_DROPPED_YET", 0)]);
    let [any, skb] = [0, skb].map(|target| kernel.add(Kind::Ptr, "", target, &[]));
    kernel.tracepoint("kfree_skb", &[any, skb, any, reason]);
    kernel.tracepoint("sched_switch", &[any]);
    let (btf, absent) = kernel.trimmed();
    let pointer = btf.get(find(&btf, Kind::Typedef, "btf_trace_kfree_skb").unwrap().head).unwrap();
    let prototype = btf.get(pointer.head).unwrap();
    assert_eq!((prototype.kind, prototype.vlen), (Kind::FuncProto, 4));
    let kinds: Vec<_> = prototype.items().map(|parameter| btf.get(parameter[1]).unwrap().kind).collect();
    assert_eq!(kinds, [Kind::Ptr, Kind::Ptr, Kind::Ptr, Kind::Enum]);
    assert_eq!(find(&btf, Kind::Typedef, "btf_trace_sched_switch"), None);
    assert!(
        absent.contains(&"tracepoint consume_skb".to_owned()) && !absent.contains(&"tracepoint kfree_skb".to_owned())
    );
}

#[test]
fn a_function_keeps_its_prototype_and_other_functions_are_not_kept() {
    let mut kernel = Kernel::new();
    let int = kernel.add(Kind::Int, "int", 4, &[32]);
    let sock = kernel.aggregate(Kind::Struct, "sock", 8, &[("sk_err", int, 0)]);
    let packet = kernel.aggregate(Kind::Struct, "packet", 8, &[("len", int, 0)]);
    let [sock, packet] = [sock, packet].map(|target| kernel.add(Kind::Ptr, "", target, &[]));
    kernel.function("tcp_child_process", int, &[("parent", sock), ("child", sock), ("skb", packet)]);
    kernel.function("tcp_rcv_established", 0, &[("sk", sock)]);
    let (btf, absent) = kernel.trimmed();
    let function = find(&btf, Kind::Func, "tcp_child_process").unwrap();
    let prototype = btf.get(function.head).unwrap();
    assert_eq!((prototype.kind, prototype.vlen), (Kind::FuncProto, 3));
    let parameters: Vec<_> = prototype.items().map(|it| (btf.name(it[0]), btf.get(it[1]).unwrap().kind)).collect();
    assert_eq!(parameters, [("parent", Kind::Ptr), ("child", Kind::Ptr), ("skb", Kind::Ptr)]);
    assert_eq!(btf.get(prototype.head), find(&btf, Kind::Int, "int"));
    let behind = btf.get(btf.get(prototype.items().nth(2).unwrap()[1]).unwrap().head).unwrap();
    assert_eq!((behind.kind, btf.name(behind.name)), (Kind::Fwd, "packet"), "of an argument's structure only the name");
    assert_eq!(find(&btf, Kind::Func, "tcp_rcv_established"), None);
    assert!(absent.contains(&"function tcp_check_req".to_owned()), "{absent:?}");
    assert!(!absent.contains(&"function tcp_child_process".to_owned()), "{absent:?}");
}

#[test]
fn functions_that_share_a_name_are_all_kept() {
    let mut kernel = Kernel::new();
    let int = kernel.add(Kind::Int, "int", 4, &[32]);
    kernel.function("tcp_check_req", int, &[("sock", int)]);
    kernel.function("tcp_check_req", int, &[("sock", int), ("newsock", int)]);
    let (btf, _) = kernel.trimmed();
    let arguments: Vec<u16> =
        named(&btf, Kind::Func, "tcp_check_req").map(|(_, t)| btf.get(t.head).unwrap().vlen).collect();
    assert_eq!(arguments, [1, 2]);
}

#[test]
fn of_the_helpers_those_are_kept_that_tracer_asks_for_with_their_numbers() {
    let mut kernel = Kernel::new();
    kernel.enumeration(
        "bpf_func_id",
        &[("BPF_FUNC_unspec", 0), ("BPF_FUNC_map_lookup_elem", 1), ("BPF_FUNC_task_pt_regs", 175)],
    );
    let (btf, absent) = kernel.trimmed();
    let helpers = find(&btf, Kind::Enum, "bpf_func_id").unwrap();
    assert_eq!((helpers.head, helpers.vlen), (4, 1));
    let kept: Vec<_> = helpers.items().map(|item| (btf.name(item[0]), item[1])).collect();
    assert_eq!(kept, [("BPF_FUNC_task_pt_regs", 175)]);
    assert!(absent.contains(&"BPF_FUNC_map_lookup_percpu_elem in enum bpf_func_id".to_owned()), "{absent:?}");
    assert!(!absent.iter().any(|what| what.contains("BPF_FUNC_task_pt_regs")), "{absent:?}");
}

#[test]
fn what_the_kernel_lacks_is_named() {
    let mut kernel = Kernel::new();
    let int = kernel.add(Kind::Int, "int", 4, &[32]);
    kernel.aggregate(Kind::Struct, "net", 4, &[("ns", int, 0)]);
    let (btf, absent) = kernel.trimmed();
    for expected in [
        "field ns.inum in struct net",
        "field sk_err in struct sock",
        "LINUX_MIB_LISTENDROPS",
        "enum skb_drop_reason",
        "function tcp_conn_request",
        "BPF_FUNC_task_pt_regs in enum bpf_func_id",
    ] {
        assert!(absent.iter().any(|what| what == expected), "{expected}: {absent:?}");
    }
    assert!(find(&btf, Kind::Struct, "net").is_some(), "what there is of it is kept");
}

#[test]
fn trimming_again_changes_nothing() {
    let mut kernel = Kernel::new();
    let int = kernel.add(Kind::Int, "int", 4, &[32]);
    let work = kernel.aggregate(Kind::Struct, "work_struct", 32, &[("data", int, 0)]);
    let pointer = kernel.add(Kind::Ptr, "", work, &[]);
    kernel.add(Kind::Func, "unrelated", 0, &[]);
    kernel.aggregate(Kind::Struct, "file", 40, &[("f_inode", pointer, 0), ("work", work, 64)]);
    kernel.function("tcp_check_req", int, &[("sock", pointer)]);
    kernel.enumeration("bpf_func_id", &[("BPF_FUNC_unspec", 0), ("BPF_FUNC_task_pt_regs", 175)]);
    let once = trim(&Btf::read(&kernel.writer.finish()).unwrap()).bytes;
    assert_eq!(trim(&Btf::read(&once).unwrap()).bytes, once);
}
