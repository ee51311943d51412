"""What synclake needs of an S3 server, tried by unsigned requests: s3_contract.py URL [ROUNDS]

URL is that of a test server that accepts unsigned requests (ministack, or tests/tools/s3_front.py before another one).
Prints one line per rule, with the number of rounds that broke it, and `N passed, M failed`. The exit code is 1 if a rule is
broken. tests/engines/s3_servers.py runs it.
"""

import collections
import http.client
import re
import sys
import threading
import urllib.parse
import uuid

WRITERS = 8


class Server:
    """A bucket on an S3 server; one connection for each thread."""

    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url).netloc
        self.bucket = f"contract-{uuid.uuid4().hex[:12]}"
        self.local = threading.local()
        status, _, body = self.send("PUT", "")
        if status != 200:
            sys.exit(f"cannot create a bucket on {url}: {status} {body[:300]}")

    def send(self, method, key, body=b"", query="", **headers):
        """Returns status, headers and body of the answer to one request."""
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection(self.address, timeout=60)
        path = f"/{self.bucket}/{urllib.parse.quote(key)}" if key else f"/{self.bucket}"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.local.connection.request(method, f"{path}?{query}" if query else path, body, headers)
        answer = self.local.connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def listed(self, prefix, **more):
        """Returns all keys below a prefix, page by page, in the order of the answers."""
        found, token = [], None
        while True:
            query = {"list-type": "2", "prefix": prefix, **{k.replace("_", "-"): v for k, v in more.items()}}
            if token:
                query["continuation-token"] = token
            text = self.send("GET", "", query=urllib.parse.urlencode(query))[2].decode()
            found += re.findall(r"<Key>([^<]*)</Key>", text)
            more_pages = re.search(r"<NextContinuationToken>([^<]*)<", text)
            if not more_pages:
                return found
            token = more_pages.group(1)


def contest(server, key, **headers):
    """Lets all writers put one key at once; returns the numbers of those that were answered 200, and all answers."""
    barrier, answers = threading.Barrier(WRITERS), {}

    def write(number):
        barrier.wait()
        answers[number] = server.send("PUT", key, b"%d" % number * 500, **headers)[0]

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [number for number, status in answers.items() if status == 200], answers


def has_one_winner(server, key, **headers):
    """Tells whether exactly one writer won, the others were refused, and the object is the winner's."""
    winners, answers = contest(server, key, **headers)
    refused = sum(status in (409, 412) for status in answers.values())
    return len(winners) == 1 and refused == WRITERS - 1 and server.send("GET", key)[2] == b"%d" % winners[0] * 500


def created_once(server, n):
    return has_one_winner(server, f"create/{n:020}.json", If_None_Match="*")


def replaced_once(server, n):
    server.send("PUT", f"replace/{n}", b"first")
    etag = server.send("HEAD", f"replace/{n}")[1]["ETag"]
    return has_one_winner(server, f"replace/{n}", If_Match=etag)


def stale_tags_are_refused(server, n):
    server.send("PUT", f"stale/{n}", b"first")
    etag = server.send("HEAD", f"stale/{n}")[1]["ETag"]
    server.send("PUT", f"stale/{n}", b"second")
    status = server.send("PUT", f"stale/{n}", b"third", If_Match=etag)[0]
    return status == 412 and server.send("GET", f"stale/{n}")[2] == b"second"


def a_write_is_listed_and_read_at_once(server, n):
    key = f"fresh/{n % 7}/{n:06}"
    server.send("PUT", key, b"x" * n)
    is_seen = server.send("GET", key)[2] == b"x" * n and key in server.listed(f"fresh/{n % 7}/")
    server.send("PUT", key, b"y" * n)
    return is_seen and server.send("GET", key)[2] == b"y" * n


def a_deletion_is_seen_at_once(server, n):
    key = f"gone/{n % 7}/{n:06}"
    server.send("PUT", key, b"x")
    server.send("DELETE", key)
    return server.send("GET", key)[0] == 404 and key not in server.listed(f"gone/{n % 7}/")


def listings_are_sorted_and_whole(server, n):
    """Lists keys with the characters of Hive partitions, page by page; `start-after` continues behind a key."""
    prefix = f"sorted/{n}/"
    keys = [f"{prefix}pool=p{i % 3}/event_date=2026-01-0{i % 9 + 1}/part-{i:03}.parquet" for i in range(11)]
    keys += [f"{prefix}pool=p1.x", f"{prefix}pool=p1-x/a", f"{prefix}pool=p1/event_date=2026-01-01x"]
    for key in keys:
        server.send("PUT", key, b"x")
    keys.sort()
    return server.listed(prefix, max_keys="4") == keys and server.listed(prefix, start_after=keys[5]) == keys[6:]


def ranges_are_exact(server, n):
    body = bytes(i % 251 for i in range(5_000 + n))
    server.send("PUT", f"range/{n}", body)
    first = server.send("GET", f"range/{n}", Range="bytes=1000-1999")
    last = server.send("GET", f"range/{n}", Range="bytes=-8")
    return (first[0], first[2], last[0], last[2]) == (206, body[1000:2000], 206, body[-8:])


def parts_become_visible_together(server, n):
    key = f"parts/{n}"
    text = server.send("POST", key, query="uploads=")[2].decode()
    upload = re.search(r"<UploadId>([^<]*)<", text).group(1)
    parts = [b"a" * (5 << 20), b"b" * 1000]
    tags = []
    for number, part in enumerate(parts, 1):
        tags.append(server.send("PUT", key, part, query=f"partNumber={number}&uploadId={upload}")[1]["ETag"])
    is_hidden = server.send("GET", key)[0] == 404 and not server.listed(key)
    listed = "".join(f"<Part><PartNumber>{i}</PartNumber><ETag>{tag}</ETag></Part>" for i, tag in enumerate(tags, 1))
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    done = server.send("POST", key, body, query=f"uploadId={upload}")[0]
    return is_hidden and done == 200 and server.send("GET", key)[2] == b"".join(parts)


# Each rule, and the part of the rounds that it is tried for: an upload of parts is large.
RULES = {
    "one of several conditional creations succeeds (If-None-Match: *)": (created_once, 1),
    "one of several conditional replacements succeeds (If-Match)": (replaced_once, 1),
    "a replacement with a stale tag is refused": (stale_tags_are_refused, 1),
    "a written object is listed and read at once": (a_write_is_listed_and_read_at_once, 1),
    "a deleted object is gone at once": (a_deletion_is_seen_at_once, 1),
    "a listing is whole and in the order of UTF-8 bytes": (listings_are_sorted_and_whole, 0.1),
    "a range is read exactly": (ranges_are_exact, 1),
    "a multipart upload is invisible until it is complete": (parts_become_visible_together, 0.05),
}


def check(url, rounds):
    """Tries all rules; returns the number of broken rounds for each rule."""
    server, broken = Server(url), collections.Counter()
    for rule, (holds, part) in RULES.items():
        count = max(1, round(rounds * part))
        broken[rule] = sum(not holds(server, n) for n in range(count))
        print(f"{'ok' if not broken[rule] else 'BROKEN'}: {rule}: {count - broken[rule]} of {count} rounds", flush=True)
    return broken


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    broken = check(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 60)
    failed = sum(n > 0 for n in broken.values())
    print(f"{len(broken) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
