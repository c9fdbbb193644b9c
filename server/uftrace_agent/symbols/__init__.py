"""Which functions a file or a process has, where, and what their bytes are."""

from uftrace_agent.symbols.byte_source import MalformedElfError as MalformedElfError
from uftrace_agent.symbols.function_table import FunctionKind as FunctionKind
from uftrace_agent.symbols.function_table import FunctionSymbol as FunctionSymbol
from uftrace_agent.symbols.function_table import FunctionTable as FunctionTable
from uftrace_agent.symbols.module_image import ModuleImage as ModuleImage
from uftrace_agent.symbols.patterns import FunctionPattern as FunctionPattern
from uftrace_agent.symbols.process_modules import LoadedModule as LoadedModule
from uftrace_agent.symbols.process_modules import ProcessModules as ProcessModules
from uftrace_agent.symbols.process_modules import list_modules as list_modules

__all__ = [
    "FunctionKind",
    "FunctionPattern",
    "FunctionSymbol",
    "FunctionTable",
    "LoadedModule",
    "MalformedElfError",
    "ModuleImage",
    "ProcessModules",
    "list_modules",
]
