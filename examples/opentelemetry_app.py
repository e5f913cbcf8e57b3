"""OpenTelemetry: spans that tell the client from the peer. They are printed here.

    KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on \\
        OTEL_SEMCONV_STABILITY_OPT_IN=http uvicorn --no-proxy-headers examples.opentelemetry_app:app
"""

from __future__ import annotations

from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from kongrealip import RealIPMiddleware
from kongrealip.middleware.opentelemetry import server_request_hook

app = FastAPI()
app.add_middleware(RealIPMiddleware)


@app.get("/")
def index() -> str:
    return "ok"


provider = TracerProvider()
provider.add_span_processor(
    SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"{span.to_json(indent=None)}\n"))
)
FastAPIInstrumentor.instrument_app(
    app, server_request_hook=server_request_hook, tracer_provider=provider, exclude_spans=["receive", "send"]
)
