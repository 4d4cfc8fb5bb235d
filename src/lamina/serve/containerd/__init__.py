"""containerd's services snapshots.v1 and diff.v1 over gRPC, as its proxy plugins are spoken to."""
