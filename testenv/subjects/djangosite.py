"""Serve a Django site with all of Django's contrib apps that need nothing besides, within this process.

Prints a line once it is ready, when it has answered a request. For each line with a number it then answers so many
requests and prints the processor time that they took, in nanoseconds. Ends with its input.
"""

import sys
import time

import django
from django.conf import settings
from django.urls import include, path

CONTRIB = (
    "admin", "admindocs", "auth", "contenttypes", "flatpages", "humanize", "messages", "redirects", "sessions",
    "sitemaps", "sites", "staticfiles", "syndication",
)

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib." + app for app in CONTRIB],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
        "django.contrib.redirects.middleware.RedirectFallbackMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a benchmark",
    SITE_ID=1,
    STATIC_URL="static/",
    TEMPLATES=[{
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]},
    }],
)
django.setup()

from django.contrib import admin  # noqa: E402  these need the apps
from django.contrib.flatpages.sitemaps import FlatPageSitemap  # noqa: E402
from django.contrib.sitemaps.views import sitemap  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.test import Client  # noqa: E402

urlpatterns = [
    path("admin/doc/", include("django.contrib.admindocs.urls")),
    path("admin/", admin.site.urls),
    path("accounts/", include("django.contrib.auth.urls")),
    path("pages/", include("django.contrib.flatpages.urls")),
    path("sitemap.xml", sitemap, {"sitemaps": {"pages": FlatPageSitemap}}),
]


def main():
    call_command("migrate", verbosity=0)
    client = Client()

    def request():
        response = client.get("/admin/login/")
        if response.status_code != 200 or b"csrfmiddlewaretoken" not in response.content:
            sys.exit("the login page is %s" % response)

    request()
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.process_time_ns()
        for _ in range(int(line)):
            request()
        print(time.process_time_ns() - began, flush=True)


if __name__ == "__main__":
    main()
