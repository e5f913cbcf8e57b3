# kongrealip with an application that shows what it sees, or as the base of an image with yours:
#
#     FROM kongrealip
#     USER root
#     RUN pip install --no-cache-dir ...
#     USER 65532:65532
#     COPY . .
#     CMD ["serve", "main:app"]

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kongrealip kongrealip
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.13-slim
COPY --from=build /dist /dist
# Wheels alone, for there is no compiler here and none is wanted. HTTP/2 is experimental and left out.
RUN pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: \
    "$(echo /dist/*.whl)[websockets,selfsigned,metrics]"

# Output at once, and a status listener for the health check. It serves this container alone:
# Prometheus and a kubelet come from outside and need 0.0.0.0:8100.
ENV PYTHONUNBUFFERED=1 KONG_STATUS_LISTEN=127.0.0.1:8100
WORKDIR /app
# Nobody in particular. A number, so that runAsNonRoot can be checked without looking into the image.
USER 65532:65532
EXPOSE 8000 8443
STOPSIGNAL SIGTERM
# On the port that is configured, and never by way of a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-I", "-c", "import os, urllib.request as r; port = os.environ['KONG_STATUS_LISTEN'].replace(',', ' ').split()[0].rpartition(':')[2]; r.build_opener(r.ProxyHandler({})).open(f'http://127.0.0.1:{port}/status/ready', timeout=3)"]
ENTRYPOINT ["kongrealip"]
CMD ["serve"]
