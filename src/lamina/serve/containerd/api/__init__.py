"""The messages of containerd's protocols, made by ``scripts/protos`` of the files here."""
