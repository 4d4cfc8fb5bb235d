"""Docker's graph driver plugin: HTTP on a unix socket, translated to drivers.

The protocol is that of moby's daemon/graphdriver/proxy.go (Docker 1.8 to 27): ``POST /METHOD``
with JSON in and out, a raw tar in for ``ApplyDiff`` and out for ``Diff``. A status other than 200
comes with ``{"Err": "..."}``.

    messages     what requests hold
    graphdriver  what each method does: calls of a driver
    bodies       tars between the threads that pack and unpack and the loop that has the sockets
    application  requests to methods, results to answers (ASGI)
    server       sockets, the HTTP server (uvicorn), start and stop
"""
