"""A mail server for tests: mail.py PORT FILE CERT KEY. It keeps what it takes in FILE, and says no to refuse@."""

import asyncio
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, SMTP

port, kept, cert, key = int(sys.argv[1]), *sys.argv[2:]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(cert, key)


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refuse@"):
            return "550 nobody here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        with open(kept, "ab") as file:
            file.write(b"AS %s TLS %s\n" % (str(session.auth_data).encode(), str(bool(session.ssl)).encode()))
            file.write(envelope.content + b"\n--END--\n")
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    good = getattr(data, "login", None) == b"nftjail" and data.password == b"s3cret"
    return AuthResult(success=good, auth_data=data.login.decode() if good else None)


class Server(Controller):
    def factory(self):
        return SMTP(self.handler, tls_context=context, authenticator=authenticate, hostname="localhost")


server = Server(Handler(), hostname="127.0.0.1", port=port)
server.start()
asyncio.new_event_loop().run_forever()
