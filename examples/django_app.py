"""Django in one file, under WSGI and under ASGI.

Both are configured by the same variables:

    export KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on
    gunicorn examples.django_app:application
    uvicorn --no-proxy-headers examples.django_app:asgi_application
"""

from __future__ import annotations

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from kongrealip.middleware import asgi, wsgi


def index(request: HttpRequest) -> JsonResponse:
    resolution = wsgi.resolution_of(request)
    return JsonResponse(
        {
            "client": request.META["REMOTE_ADDR"],
            "peer": resolution.peer.ip,
            "source": resolution.source,
            "secure": request.is_secure(),
            "link": request.build_absolute_uri(),
        }
    )


urlpatterns = [path("", index)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])

application = wsgi.RealIPMiddleware(get_wsgi_application())
asgi_application = asgi.RealIPMiddleware(get_asgi_application())  # type: ignore[arg-type]
