# SPDX-License-Identifier: Apache-2.0
"""What tests need around the agent: programs to trace, and proofs that they are unharmed."""
