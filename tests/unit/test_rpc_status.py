"""Errors become statuses: the table, and what rides along."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from uftrace_agent import errors
from uftrace_agent.rpc.status import UnauthenticatedError, to_status


def info_of(error: errors.AgentError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert to_status(error).details[0].Unpack(info)
    return info


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
        (errors.InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
        (errors.NoSuchProcessError, grpc.StatusCode.NOT_FOUND),
        (errors.NoSuchSessionError, grpc.StatusCode.NOT_FOUND),
        (errors.NoSuchFunctionError, grpc.StatusCode.NOT_FOUND),
        (errors.ConflictError, grpc.StatusCode.ALREADY_EXISTS),
        (errors.AlreadyHeldError, grpc.StatusCode.ALREADY_EXISTS),
        (errors.ForeignTracerError, grpc.StatusCode.ALREADY_EXISTS),
        (errors.ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
        (errors.UnsupportedTargetError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.TargetGoneError, grpc.StatusCode.NOT_FOUND),
        (errors.BusyTargetError, grpc.StatusCode.ABORTED),
        (errors.ExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.EngineFaultError, grpc.StatusCode.INTERNAL),
        (errors.AgentError, grpc.StatusCode.INTERNAL),
    ],
)
def test_each_error_has_its_code_and_reason(error, code):
    status = to_status(error("it did not work"))
    assert (status.code, status.message) == (code.value[0], "it did not work")
    assert info_of(error("x")).reason == error.default_reason


def test_every_error_of_the_tree_has_a_code():
    def below(cls):
        return {cls, *(leaf for child in cls.__subclasses__() for leaf in below(child))}

    unmapped = {
        cls.__name__
        for cls in below(errors.AgentError) - {errors.AgentError}
        if to_status(cls("x")).code == grpc.StatusCode.INTERNAL.value[0]
    }
    assert unmapped == {"EngineFaultError"}


def test_hint_suggestions_and_metadata_ride_along():
    error = errors.NoSuchFunctionError(
        "no function matches mallox",
        hint="did you mean malloc?",
        metadata={"suggestions": "malloc,mallopt"},
    )
    info = info_of(error)
    assert info.domain == "uftrace"
    assert dict(info.metadata) == {
        "suggestions": "malloc,mallopt",
        "hint": "did you mean malloc?",
    }


def test_metadata_fits_into_a_header():
    info = info_of(errors.AgentError("x", metadata={"long": "y" * 100_000}))
    assert len(info.metadata["long"]) == 1000
