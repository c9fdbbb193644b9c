"""From records to calls: decoding, clocks, pairing, and traces on disk."""
