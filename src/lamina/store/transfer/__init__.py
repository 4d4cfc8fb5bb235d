"""Images on their way into a store, and out of it.

In: a source (:mod:`lamina.oci.content`) says what an image is (``resolving``), its layers are
unpacked side by side (``staging``) and checked (``blobs``), from files that are still growing where
they come over a network (``downloads``), and become layers and an image in one step (``loading``).

Out: for each layer a blob is chosen or made (``making``), and goes to a target (``saving``).
"""
