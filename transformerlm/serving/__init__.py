"""The HTTP server: OpenAI's completions over one engine, and the playground page.

    socket ─ connections ─▶ guards ─▶ app ─ protocol ─▶ CompletionRequest
           ◀─ bytes ─ completions ◀─ Drawn tokens ─ worker (the one thread that owns the engine)

`connections` drops clients who are too slow, `guards` refuses whom it does not know and what is too large, `protocol`
is the form of requests, `worker` decodes, `completions` makes OpenAI's objects of tokens, `service` is the work of a
request from end to end, `app` puts the parts together and `server` runs them until a signal comes. Needs the extra
`serve`; this module and `settings` do without.
"""
