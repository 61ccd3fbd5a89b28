"""Messages of the gRPC front, generated from the `.proto` files here by ``make proto``.

The names are the protocol's and protobuf holds one description per name in a pool; these are in one of their own, so
that tritonclient's or kserve's may be in the process too.
"""
