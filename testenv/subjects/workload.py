"""Run a good part of the standard library, the same way each time.

``run()`` does it. ``traced()`` does it under ``sys.setprofile``, and returns each function that
began to run as [file, first line, name]. Only modules that nothing else in a subject imports are
used, so that whatever of them ran, ran here.
"""

import sys

# The files whose functions are compared.
FILES = (
    "_pydecimal.py", "difflib.py", "textwrap.py", "html/parser.py", "_markupbase.py", "argparse.py", "configparser.py",
    "csv.py", "fractions.py", "statistics.py", "pprint.py", "shlex.py", "string.py", "cmd.py", "email/", "mailbox.py",
    "tarfile.py", "gettext.py", "optparse.py", "sched.py", "plistlib.py", "xml/dom/", "xml/etree/",
    "asyncio/", "http/cookies.py", "pickletools.py", "colorsys.py",
)


def run():
    """Return nothing: what counts is what ran."""
    import _pydecimal
    import argparse
    import asyncio
    import colorsys
    import configparser
    import csv
    import difflib
    import email
    import email.mime.multipart
    import email.mime.text
    import fractions
    import html.parser
    import http.cookies
    import io
    import optparse
    import pickle
    import pickletools
    import plistlib
    import pprint
    import sched
    import shlex
    import statistics
    import string
    import tarfile
    import textwrap
    import tokenize
    import urllib.parse
    import xml.dom.minidom
    import xml.etree.ElementTree

    with _pydecimal.localcontext() as context:
        context.prec = 40
        (_pydecimal.Decimal(2).sqrt() * _pydecimal.Decimal("1.1") ** 3 / 7).quantize(_pydecimal.Decimal("0.001"))
    "".join(difflib.unified_diff("one two".split(), "one three".split()))
    difflib.get_close_matches("appel", ["ape", "apple", "peach"])
    textwrap.fill("a b c " * 40, 30)

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            self.last = tag

    Parser().feed("<!DOCTYPE html><p class=x>&amp;<br/><!-- c --></p>")
    parser = argparse.ArgumentParser(prog="p")
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("rest", nargs="*")
    parser.parse_args(["--n", "3", "a"])
    parser.format_help()
    options = optparse.OptionParser()
    options.add_option("-x", action="store_true")
    options.parse_args(["-x"])
    config = configparser.ConfigParser()
    config.read_string("[a]\nb = 1\nc = %(b)s\n")
    config["a"]["c"]
    config.write(io.StringIO())
    csv.DictWriter(io.StringIO(), ["a"]).writerow({"a": 1})
    list(csv.DictReader(["a,b", "1,2"]))
    csv.Sniffer().sniff("a;b\n1;2\n")
    fractions.Fraction("1/3") + fractions.Fraction(2)
    statistics.stdev([1, 2, 3, 4])
    pprint.pformat({"a": [1] * 30, "b": {"c": tuple(range(40))}})
    shlex.split("a 'b c' d")
    string.Template("$a").substitute(a=1)
    message = email.mime.multipart.MIMEMultipart()
    message.attach(email.mime.text.MIMEText("x", "plain", "utf-8"))
    message["Subject"] = "ü"
    email.message_from_string(message.as_string()).get_payload()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("x")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    archive.seek(0)
    tarfile.open(fileobj=archive).getmembers()
    scheduler = sched.scheduler()
    scheduler.enter(0, 1, lambda: None)
    scheduler.run()
    plistlib.loads(plistlib.dumps({"a": [1, 2.5, "x", b"y"]}))
    xml.dom.minidom.parseString("<a><b c='d'/></a>").toxml()
    xml.etree.ElementTree.tostring(xml.etree.ElementTree.fromstring("<a><b/></a>"))
    http.cookies.SimpleCookie("a=b; c=d").output()
    urllib.parse.urljoin("http://a/b?c=d", "../e")
    urllib.parse.parse_qs("a=1&b=2")
    pickletools.dis(pickle.dumps([1, "x"]), out=io.StringIO())
    list(tokenize.tokenize(io.BytesIO(b"def f(): return 1\n").readline))
    colorsys.rgb_to_hls(0.1, 0.2, 0.3)

    async def sleeper(n):
        await asyncio.sleep(0)
        return n

    async def main():
        queue = asyncio.Queue()
        await queue.put(1)
        await asyncio.gather(*(sleeper(i) for i in range(5)))
        await asyncio.wait_for(queue.get(), 5)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()


def traced():
    """Return what began to run."""
    ran = set()

    def note(frame, event, _):
        if event == "call":
            code = frame.f_code
            # A resumed generator is called again; one that never began is not called at all.
            ran.add((code.co_filename, code.co_firstlineno, code.co_name))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return sorted(ran)
