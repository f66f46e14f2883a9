import { test } from 'node:test';
import assert from 'node:assert/strict';
import { debianLines, debianStanzas } from './apt-source.ts';

test("of deb822 sources, Debian's are kept, for any architecture", () => {
  const content = `Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Architectures: amd64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://other.example/repo
Suites: stable
Components: main

Types: deb
Enabled: no
URIs: http://mirror.example/debian
Suites: sid
Components: main

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm

Types: deb
URIs: http://mirror.example/debian-security/
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
`;
  assert.equal(
    debianStanzas(content),
    `Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security/
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
`,
  );
  assert.equal(debianStanzas(''), '');
});

test("of one-line sources, Debian's are kept, for any architecture", () => {
  const content = `# deb http://mirror.example/debian sid main
deb http://mirror.example/debian bookworm main contrib # said here
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian-security bookworm-security main
deb [arch=amd64] http://mirror.example/debian bookworm-updates main
deb-src http://mirror.example/debian bookworm main
deb https://other.example/apt stable main
`;
  assert.equal(
    debianLines(content),
    `deb http://mirror.example/debian bookworm main contrib
deb [signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian-security bookworm-security main
deb http://mirror.example/debian bookworm-updates main
`,
  );
});
