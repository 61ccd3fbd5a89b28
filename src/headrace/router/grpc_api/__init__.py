"""Messages of the gRPC front, generated from the `.proto` files here by ``make proto``.

The names are the protocol's, so this package and another client's (tritonclient's, kserve's) cannot be imported into
one process: protobuf holds one description per name.
"""
