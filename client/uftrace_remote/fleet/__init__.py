"""Many agents as one: addressing, inventory, and asking all of them at once.

async with Fleet("web[01-16],@db") as fleet:
    found = await fleet.members("nginx")
    done = await fleet.patch(found, PatchPlan(("ngx_http_*",)))
"""

from __future__ import annotations

from uftrace_remote.fleet.address import FleetTarget as FleetTarget
from uftrace_remote.fleet.address import GroupName as GroupName
from uftrace_remote.fleet.address import Host as Host
from uftrace_remote.fleet.address import parse_hosts as parse_hosts
from uftrace_remote.fleet.agents import HostReport as HostReport
from uftrace_remote.fleet.agents import ask_agents as ask_agents
from uftrace_remote.fleet.agents import describe_hosts as describe_hosts
from uftrace_remote.fleet.agents import list_processes as list_processes
from uftrace_remote.fleet.agents import measure_clocks as measure_clocks
from uftrace_remote.fleet.agents import same_agents as same_agents
from uftrace_remote.fleet.clock_offset import ClockOffset as ClockOffset
from uftrace_remote.fleet.coordinated_patch import FleetPatch as FleetPatch
from uftrace_remote.fleet.coordinated_patch import MemberOutcome as MemberOutcome
from uftrace_remote.fleet.coordinated_patch import PatchPlan as PatchPlan
from uftrace_remote.fleet.fan_out import Outcome as Outcome
from uftrace_remote.fleet.fan_out import failure_of as failure_of
from uftrace_remote.fleet.fan_out import fan_out as fan_out
from uftrace_remote.fleet.fleet import Answers as Answers
from uftrace_remote.fleet.fleet import Fleet as Fleet
from uftrace_remote.fleet.grouping import SameAnswer as SameAnswer
from uftrace_remote.fleet.grouping import fold_endpoints as fold_endpoints
from uftrace_remote.fleet.grouping import group_answers as group_answers
from uftrace_remote.fleet.inventory import Group as Group
from uftrace_remote.fleet.inventory import Inventory as Inventory
from uftrace_remote.fleet.inventory_file import load_inventory as load_inventory
from uftrace_remote.fleet.member import Agent as Agent
from uftrace_remote.fleet.member import Member as Member
from uftrace_remote.fleet.merged_events import Certainty as Certainty
from uftrace_remote.fleet.merged_events import MergedEvents as MergedEvents
from uftrace_remote.fleet.merged_events import SourceCounts as SourceCounts
from uftrace_remote.fleet.resolution import FleetHost as FleetHost
from uftrace_remote.fleet.resolution import FleetHosts as FleetHosts
from uftrace_remote.fleet.resolution import resolve_hosts as resolve_hosts
from uftrace_remote.fleet.resolution import resolve_target as resolve_target
from uftrace_remote.fleet.rollout import RolloutPolicy as RolloutPolicy
from uftrace_remote.fleet.rollout import Step as Step
from uftrace_remote.fleet.stream import FleetStream as FleetStream
from uftrace_remote.fleet.stream_values import MergedBatch as MergedBatch
from uftrace_remote.fleet.stream_values import SourceState as SourceState
from uftrace_remote.fleet.stream_values import SourceStatus as SourceStatus
from uftrace_remote.fleet.stream_values import StreamOptions as StreamOptions
