"""The calls of -finstrument-functions, synthetic and as the compilers make them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.engine.annex_model import (
    CODE,
    RETURN,
    STUBS,
    AnnexModel,
    key_of,
    stack_pointer,
    with_register,
)
from tests.engine.planning import FOLLOWING, SITE, Case, check_plan, mapped
from uftrace_agent.engine.architecture import ModuleSpan, SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Form, SiteKind, Writer
from uftrace_agent.engine.site import FunctionCode, Role, SitePlan
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.engine.x86_64.instruction import Line, decode, outline
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, KIND_EXIT
from uftrace_agent.symbols.module_image import ModuleImage

ENTER = SITE + 0x800
EXIT = SITE + 0x900
SLOT = SITE + 0xA00  # a GOT slot that holds ENTER
OTHER = SITE + 0x400
HOOKS: Mapping[int, str] = {
    ENTER: "__cyg_profile_func_enter",
    EXIT: "__cyg_profile_func_exit",
    SLOT: "__cyg_profile_func_enter",
}
ID = 7


class Function:
    """A function under construction."""

    def __init__(self) -> None:
        self.code = b""

    def add(self, code: str) -> Function:
        self.code += bytes.fromhex(code)
        return self

    def relative(self, opcode: str, to: int) -> Function:
        """An instruction that ends in a 32-bit displacement."""
        self.add(opcode)
        end = SITE + len(self.code) + 4
        self.code += (to - end).to_bytes(4, "little", signed=True)
        return self

    def hook(self, to: int, caller: str, function: int = SITE, how: str = "e8") -> Function:
        """mov `caller`,%rsi; lea function(%rip),%rdi; call hook"""
        return self.add(caller).relative("488d3d", function).relative(how, to)

    def plan(self, **options: object) -> SitePlan:
        case = Case(region=CodeRegion(CODE, 0x10000, STUBS))
        options = {"writer": Writer.STOP, "size": len(self.code), "profiled": HOOKS} | options
        body = self.code
        return case.plan(body + FOLLOWING, body=body, **options)  # type: ignore[arg-type]


FROM_FRAME = "488b7508"  # mov 8(%rbp),%rsi
FROM_STACK = "488b742418"  # mov 24(%rsp),%rsi


def framed(inside: bool = False) -> Function:
    """push rbp; mov rsp,rbp; push rdi; sub 8,rsp; enter; (inlined hooks); lea 3(rdi),eax;
    exit; leave; ret, with eax and rdi kept in the frame."""
    function = Function().add("554889e5574883ec08")
    function.hook(ENTER, FROM_FRAME)
    if inside:
        function.hook(ENTER, FROM_FRAME, OTHER).hook(EXIT, FROM_FRAME, OTHER)
    function.add("488b7df88d4703890424")  # mov -8(%rbp),%rdi; lea 3(%rdi),%eax; mov %eax,(%rsp)
    return function.hook(EXIT, FROM_FRAME).add("8b0424c9c3")


def frameless() -> Function:
    """push rdi; push rdi; push rdi; enter; ...; exit; add $24,%rsp; ret"""
    function = Function().add("575757").hook(ENTER, FROM_STACK).add("488b3c248d470389442408")
    return function.hook(EXIT, FROM_STACK).add("8b4424084883c418c3")


def jumping() -> Function:
    """The last hook is jumped to: enter with a call, exit as a tail call."""
    function = Function().add("575757").hook(ENTER, FROM_STACK).add("4883c418")
    return function.hook(EXIT, "488b3424", how="e9")


def through_slot() -> Function:
    """The hook is reached through the GOT: six bytes."""
    function = Function().add("575757").hook(SLOT, FROM_STACK, how="ff15")
    function.add("488b3c248d470389442408")
    return function.hook(EXIT, FROM_STACK).add("8b4424084883c418c3")


FUNCTIONS = {
    "frame": framed,
    "inlined code": lambda: framed(inside=True),
    "no frame": frameless,
    "jump": jumping,
    "slot": through_slot,
}


def loaded(function: Function) -> AnnexModel:
    annex = AnnexModel()
    annex.machine.write(SITE, function.code + FOLLOWING)
    # The hooks spoil what they may, and keep what they are given: r10 = rdi, r11 = rsi.
    for hook in (ENTER, EXIT):
        annex.machine.write(hook, bytes.fromhex("4989fa4989f331ff31f631c9c3"))
    annex.machine.write(SLOT, ENTER.to_bytes(8, "little"))
    return annex


# -- what is planned -----------------------------------------------------------------


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_all_calls_that_name_the_function_are_its_sites(name: str) -> None:
    plan = FUNCTIONS[name]().plan()
    assert [(site.form, site.kind) for site in plan.sites()] == [
        (Form.CALL, SiteKind.PROFILE_CALLS)
    ] * 2
    assert [site.role for site in plan.sites()] == [Role.EXIT, Role.ENTRY]
    assert [site.is_call for site in plan.sites()] == [name != "jump", True]


def test_six_bytes_stay_one_instruction() -> None:
    plan = through_slot().plan()
    assert plan.head.wanted.startswith(b"\x67\xe8") and len(plan.head.wanted) == 6


def test_every_way_out_has_its_site() -> None:
    function = framed()
    function.hook(EXIT, FROM_FRAME).add("c9c3").hook(EXIT, FROM_FRAME).add("c9c3")
    assert [site.role for site in function.plan().others] == [Role.EXIT] * 3


def test_entries_alone_leave_the_exits() -> None:
    plan = framed().plan(entry_only=True)
    assert plan.others == () and not plan.has_exit


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(
            Function().add("575757").hook(ENTER, FROM_STACK).add("4883c418c3"), id="no exit"
        ),
        pytest.param(
            Function().add("575757").hook(EXIT, FROM_STACK).add("4883c418c3"), id="no entry"
        ),
        pytest.param(framed().hook(ENTER, FROM_FRAME), id="two entries"),
        pytest.param(
            Function().add("7400575757").hook(ENTER, "488b37").hook(EXIT, "488b37").add("c3"),
            id="caller from other memory, behind a branch",
        ),
        pytest.param(
            Function().add("575757").hook(ENTER, FROM_STACK, OTHER).hook(EXIT, FROM_STACK, OTHER),
            id="another function's",
        ),
    ],
)
def test_what_is_not_understood_is_any_function(function: Function) -> None:
    plan = function.plan()
    assert plan.form is not Form.CALL and not plan.others


def test_one_byte_is_not_enough_for_a_call() -> None:
    assert framed().plan(writer=Writer.BYTE).form is not Form.CALL


# -- what runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("enabled", [True, False])
def test_entry_and_exit_are_recorded_and_the_hooks_still_called(name: str, enabled: bool) -> None:
    # GIVEN an instrumented function, and what it does, hooks included
    function = FUNCTIONS[name]()
    annex = loaded(function)
    state = with_register(annex.state(1), "rdi", 40)
    untouched = annex.machine.run(SITE, state, [])
    assert (untouched.pc, untouched.error) == (RETURN, "")
    # WHEN its calls are redirected
    plan = function.plan()
    for write in plan.all_writes():
        annex.machine.write(write.address, write.code)
    for site in plan.sites():
        annex.machine.write(site.head.address, site.head.wanted)
    annex.enable(enabled)
    outcome = annex.run(SITE, state)
    # THEN it does the same, and its hooks were given the same
    assert (outcome.pc, outcome.error) == (RETURN, "")
    assert outcome.state.differences(untouched.state) == []
    # AND entry and exit carry the address of the return address, as everywhere
    key = key_of(stack_pointer(state))
    kinds = [(r.kind, r.function_id, r.key) for r in annex.records(1)[1:]]
    expected = [(KIND_ENTRY, ID, key), (KIND_EXIT, ID, key)]
    assert kinds == (expected if enabled else [])


def test_entries_alone_are_recorded_as_such() -> None:
    function = frameless()
    annex = loaded(function)
    plan = function.plan(entry_only=True)
    for write in plan.all_writes():
        annex.machine.write(write.address, write.code)
    annex.machine.write(plan.head.address, plan.head.wanted)
    assert annex.run(SITE, annex.state(1)).pc == RETURN
    assert [r.kind for r in annex.records(1)[1:]] == [KIND_ENTRY_ONLY]


# -- what compilers make -------------------------------------------------------------------

SOURCE = """
__attribute__((noinline)) long leaf(long x) { return x * 3 + 1; }
static inline __attribute__((always_inline)) long inlined(long x) { return leaf(x) + 2; }
__attribute__((noinline)) long ways(long x)
{
    if (x % 3 == 0) return leaf(x);
    if (x % 3 == 1) { for (long i = 0; i < x; i++) leaf(i); return 7; }
    return inlined(x) ^ leaf(x + 1);
}
__attribute__((noinline)) long recursive(long x) { return x < 2 ? 1 : x * recursive(x - 1); }
__attribute__((noinline)) long many(long a, long b, long c, long d, long e, long f, long g)
{
    volatile char buffer[a % 64 + 1];
    buffer[0] = (char)b;
    return buffer[0] + c + d + e + f + g + ways(a);
}
int main(int argc, char **argv)
{
    (void)argv;
    return (int)(many(argc, 1, 2, 3, 4, 5, 6) + recursive(argc)) & 1;
}
"""
OWN_HOOKS = """
void __cyg_profile_func_enter(void *f, void *c) { (void)f; (void)c; }
void __cyg_profile_func_exit(void *f, void *c) { (void)f; (void)c; }
"""
FLAGS = ["-O0", "-O1", "-O2", "-Os", "-O2 -fno-plt", "-O2 -no-pie"]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("hooks", ["own", "libc"])
def test_every_instrumented_function_is_understood(
    tmp_path: Path, compiler: str, flags: str, hooks: str
) -> None:
    image = compiled(tmp_path, compiler, flags.split(), own_hooks=hooks == "own")
    profiled = hook_addresses(image)
    for name in ("leaf", "ways", "recursive", "many", "main"):
        address = image.address_of(name)
        assert address is not None
        body = function_bytes(image, address)
        plan = planned(address, body, profiled)
        if name in ("ways", "many") and compiler == "clang" and flags != "-O0":
            # clang keeps `caller` in a register from the entry on, so far before the
            # exit's call that it is not always found: then it is traced as any function.
            assert plan.form is Form.CALL or not plan.others
            continue
        assert plan.form is Form.CALL, (name, outline(body, address))
        # Inlined code brings hooks of its own, with another function's address.
        called = [profiled.get(reached(body, address, line)) for line in outline(body, address)]
        exits = called.count("__cyg_profile_func_exit") - (name == "ways")
        assert len(plan.others) == exits > 0, name


def compiled(folder: Path, compiler: str, flags: list[str], *, own_hooks: bool) -> ModuleImage:
    source, binary = folder / "cyg.c", folder / "cyg"
    source.write_text(SOURCE)
    if "-no-pie" in flags:
        flags = [*flags, "-fno-pie"]
    objects: list[str] = []
    if own_hooks:
        (folder / "hooks.c").write_text(OWN_HOOKS)
        objects = [str(folder / "hooks.o")]
        command = [compiler, "-O2", "-c", "-o", *objects, str(folder / "hooks.c")]
        subprocess.run(command, check=True, capture_output=True)
    command = [compiler, *flags, "-finstrument-functions", "-o", str(binary), str(source)]
    subprocess.run([*command, *objects], check=True, capture_output=True)
    assert subprocess.run([binary], check=False).returncode in (0, 1)
    return ModuleImage.open(str(binary))


def hook_addresses(image: ModuleImage) -> dict[int, str]:
    """The hooks, their stubs and their slots."""
    names = ("__cyg_profile_func_enter", "__cyg_profile_func_exit")
    found = {slot: name for slot, name in image.got_slots.items() if name in names}
    for name in names:
        for linked in (name, f"{name}@plt"):
            address = image.address_of(linked)
            if address is not None:
                found[address] = name
    return found


def reached(body: bytes, address: int, line: Line) -> int:
    """Where a call or jump leads, or the slot that says so; 0 for anything else."""
    if line.mnemonic not in ("call", "jmp"):
        return 0
    instruction = decode(body[line.address - address :], line.address)
    assert instruction is not None
    return instruction.branch_target() or instruction.indirect_slot() or 0


def function_bytes(image: ModuleImage, address: int) -> bytes:
    index = image.functions.address.tolist().index(address)
    return image.text_bytes(address, int(image.functions.size[index]))


def planned(address: int, body: bytes, profiled: Mapping[int, str]) -> SitePlan:
    """The plan of a function that lies at its link-time address."""
    architecture = X86Architecture()
    start = address & ~0xFFFFF
    layout = CodeLayout([mapped(start, 1 << 20)], 8192, 64, architecture.reach)
    code = (body + FOLLOWING)[:64]
    function = FunctionCode(address, len(body), code, profiled, body=lambda: body)
    span = ModuleSpan(start, start + (1 << 20))
    request = SiteRequest(function, span, ID, Writer.STOP, True, None, False)
    plan = architecture.plan_site(request, layout)
    check_plan(plan, function)
    return plan
