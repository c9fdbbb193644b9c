"""Who may do what: pure values and files, nothing of gRPC.

roles            view, trace, admin, and who somebody is
client_certificates   from a certificate to an identity
tokens           the tokens of the state directory, reread when they change
guess_limiter    slows down those who try tokens
policy           rules about processes, budgets and leases
policy_file      the rules' file, reread when it changes
process_facts    what rules look at
audit            the file of changes, JSON lines
tls_directory    a fleet's certificates
"""
