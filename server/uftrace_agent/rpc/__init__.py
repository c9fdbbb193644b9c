"""The gRPC service, and everything that is gRPC: nothing below imports grpc.

servicer       the RPCs: convert, call the session layer, convert
convert        between messages and the session layer's values
status         from an error to google.rpc.Status
auth           who may call
idempotency    the same request twice is one change
handlers       how interceptors wrap RPCs of either kind
server         ports, TLS, health, reflection, start and stop
"""
