// The network as stock Debian sees it through xen-netfront: the host's servers, names, ports forwarded in, other
// guests, and what becomes of connections when a guest is checkpointed, put back, forked, saved and restored.
//
// All guests are forks of one that was booted with a card, unless they must not be.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ZazenError } from '../../src/base/errors.ts';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { freePort } from '../free-port.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import { FAST_BOOT, blockUntilReceived, limited, testHost } from './guests.ts';
import { Shell, SHELL } from './shell.ts';

const folder = mkdtempSync(join(tmpdir(), 'zazen-network-'));
const hostsFile = join(folder, 'hosts');
const capturePath = join(folder, 'capture.pcap');
writeFileSync(hostsFile, '10.9.8.7 printer.example printer\n');
const host = await testHost({
  memory: '1GiB', networks: { default: { hostsFile, dnsServers: [], outbound: false }, captured: { capturePath } },
});
after(() => rmSync(folder, { recursive: true }));

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const BODY = randomBytes(2 << 20);

// ---- servers of the host

async function listening(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  after(() => server.close());
  return (server.address() as AddressInfo).port;
}

/** Gives BODY, or what the path asks to be echoed. */
const web = createHttpServer((request: IncomingMessage, response: ServerResponse) => {
  const echo = /^\/echo\/(\w+)$/.exec(request.url ?? '')?.[1];
  response.end(echo ?? BODY);
});
/** Takes all, then answers with its checksum. */
const sink = createServer({ allowHalfOpen: true }, (socket) => {
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk)).on('error', () => {}).on('end', () => {
    const bytes = Buffer.concat(chunks);
    socket.end(`${sha256(bytes)} ${bytes.length}\n`);
  });
});
/** Answers line by line. */
const echo = createServer((socket) => { socket.on('error', () => {}).pipe(socket); });
const webPort = await listening(web);
const sinkPort = await listening(sink);
const echoPort = await listening(echo);

// ---- guests

const spec = { memory: '96MiB', cmdline: FAST_BOOT };
let booted: Checkpoint;
before(async () => {
  const domain = await host.create({ ...spec, name: 'first', nics: [{}], exec: SHELL });
  domain.exec!.output.resume();
  await limited(domain, async () => {
    await domain.exec!.started;
    await new Shell(domain, 'first').ask('true');
    booted = await domain.checkpoint();
  });
  await domain.destroy();
});

async function withForks(names: readonly string[], work: (...shells: Shell[]) => Promise<void>): Promise<void> {
  const forks = await booted.fork(names.map((name) => ({ name })));
  try {
    const shells = forks.map((fork) => new Shell(fork, fork.name));
    await limited(forks[0]!, () => work(...shells));
  } finally {
    await Promise.all(forks.map((fork) => fork.destroy()));
  }
}

test('the host over its alias, both ways, with checksums', () => withForks(['web'], async (shell) => {
  assert.equal(await shell.ask(`wget -q -O - http://10.0.2.2:${webPort}/ | sha256sum`), `${sha256(BODY)}  -`);
  const [digest, sent] = (await shell.ask(`dd if=/dev/urandom of=/f bs=64k count=16 2>/dev/null; sha256sum /f; `
    + `nc 10.0.2.2 ${sinkPort} </f`)).split('\n') as [string, string];
  assert.equal(sent, `${digest.split(' ')[0]} ${16 * 65536}`);
  assert.match(await shell.ask('ping -c 1 -W 200 10.0.2.2'), / 0% packet loss/);
  const [nic] = shell.domain.stats().nics;
  assert(nic!.rxBytes > BODY.length && nic!.txBytes > 16 * 65536 && nic!.isConnected, JSON.stringify(nic));
  assert.deepEqual([nic!.txErrors, nic!.rxErrors, nic!.rxDropped], [0, 0, 0]);
  // Super-frames: the host's TCP would need some 1400 frames without them.
  assert(nic!.rxFrames < 900, `${nic!.rxFrames} frames`);
}));

test('names: of guests and of the hosts file, forwards and backwards', () => withForks(['alice', 'bob'], async (alice, bob) => {
  const bobs = bob.domain.stats().nics[0]!.address;
  assert.match(await alice.ask('nslookup -type=a bob'), new RegExp(`Name:\\s+bob[^]*Address: ${bobs.replaceAll('.', '\\.')}`));
  assert.match(await alice.ask('nslookup -type=a printer.example'), /Address: 10\.9\.8\.7/);
  assert.match(await alice.ask(`nslookup ${bobs}`), /name = bob/);
  assert.match(await alice.ask('nslookup nobody.example 2>&1; true'), /can't|NXDOMAIN|SERVFAIL|REFUSED/);
}));

async function fetchText(url: string): Promise<string> {
  return (await fetch(url)).text();
}

/** Brings up a card that was attached to a running guest. */
const CONFIGURE = 'while [ ! -d /sys/class/net/eth0 ]; do usleep 10000; done; ip link set eth0 up; '
  + 'udhcpc -i eth0 -n -q -f -t 60 >/dev/null 2>&1';
const UNTIL_GONE = 'while [ -d /sys/class/net/eth0 ]; do usleep 10000; done';
/** The host's, of a forward in force. */
const portOf = (forward: string): number => Number(forward.split(':')[1]);

/** Until the guest's server listens: a connection that it refuses ends at once. */
async function eventually<T>(attempt: () => Promise<T>): Promise<T> {
  for (const start = performance.now(); ;) {
    try {
      return await attempt();
    } catch (error) {
      if (performance.now() - start > PATIENCE_MILLIS) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

test('a web server in the guest, reached through a port forward, and a card attached and detached meanwhile', async () => {
  await withForks(['server'], async (shell) => {
    const { domain } = shell;
    await shell.ask('mkdir -p /www; echo hello from the guest >/www/index.html; httpd -h /www');
    await domain.detachNic(0);
    await shell.ask(UNTIL_GONE);
    const { handle, forwards } = await domain.attachNic({ forwards: ['0:80', '0:7/udp'] });
    assert.deepEqual([handle, forwards.length], [1, 2]);
    await shell.ask(CONFIGURE);
    const port = portOf(forwards[0]!);
    assert.equal(await eventually(() => fetchText(`http://127.0.0.1:${port}/`)), 'hello from the guest\n');
    await domain.detachNic(1);
    await shell.ask(UNTIL_GONE);
    await assert.rejects(fetchText(`http://127.0.0.1:${port}/`));
    await assert.rejects(domain.detachNic(1), { code: 'ZAZEN_NIC_UNKNOWN' });
    assert.equal(host.store.exists(`/local/domain/${domain.id}/backends/vif/1`), false);
  });
});

test('frames between guests, and of the gateway, do not wait for the main thread', () => withForks(['left', 'right'], async (left, right) => {
  const rights = right.domain.stats().nics[0]!.address;
  await left.ask(`(while ping -c 1 -W 200 ${rights} && ping -c 1 -W 200 10.0.2.2; do true; done >/dev/null 2>&1) & true`);
  blockUntilReceived(left.domain, 50);
  blockUntilReceived(right.domain, 20);
}));

test('guests on one network reach each other, guests on another do not; its capture has the frames', async () => {
  await withForks(['left', 'right'], async (left, right) => {
    const addresses = [left, right].map(({ domain }) => domain.stats().nics[0]!.address) as [string, string];
    assert.notEqual(addresses[0], addresses[1]);
    assert.match(await left.ask(`ping -c 2 -W 200 ${addresses[1]}`), / 0% packet loss/);
    // Each sends, and is told the checksum of what came.
    for (const [from, to, address] of [[left, right, addresses[1]], [right, left, addresses[0]]] as const) {
      await to.ask('(nc -l -p 9000 -e sha256sum) & true');
      const sums = await from.ask(`dd if=/dev/urandom of=/f bs=64k count=16 2>/dev/null; sha256sum </f; `
        + `until nc ${from === left ? address : 'left'} 9000 </f 2>/dev/null; do usleep 50000; done`);
      const [sent, received] = sums.split('\n');
      assert.equal(received, sent);
    }

    // The card of another network, in the same guest's place.
    await right.domain.detachNic(0);
    await right.ask(UNTIL_GONE);
    await right.domain.attachNic({ network: 'captured', address: addresses[1] });
    await right.ask(CONFIGURE);
    assert.equal(right.domain.stats().nics[0]!.address, addresses[1]);
    assert.match(await right.ask('ping -c 1 -W 200 10.0.2.2'), / 0% packet loss/);
    assert.match(await left.ask(`ping -c 1 -W 1 ${addresses[1]}`), / 100% packet loss/);
    assert.match(await right.ask(`ping -c 1 -W 1 ${addresses[0]}`), / 100% packet loss/);
  });
  const capture = readFileSync(capturePath);
  assert(capture.length > 500, `${capture.length} bytes captured`);
  assert(capture.includes(Buffer.from('captured')) === false);
});

test('ten guests at once, forks of one: each with its own connection, address and name', () => {
  const names = Array.from({ length: 10 }, (_, i) => `fork${i}`);
  return withForks(names, async (...shells) => {
    const nics = shells.map(({ domain }) => domain.stats().nics[0]!);
    assert.equal(new Set(nics.map(({ mac }) => mac)).size, 10);
    assert.equal(new Set(nics.map(({ address }) => address)).size, 10);
    const answers = await Promise.all(shells.map((shell) =>
      shell.ask(`wget -q -O - http://10.0.2.2:${webPort}/echo/${shell.name}`)));
    assert.deepEqual(answers, names);
    const digests = await Promise.all(shells.map((shell) =>
      shell.ask(`wget -q -O - http://10.0.2.2:${webPort}/ | sha256sum`)));
    assert.deepEqual(new Set(digests), new Set([`${sha256(BODY)}  -`]));
    await shells[3]!.ask('(echo it is me | nc -l -p 7000) & true');
    assert.equal(await shells[7]!.ask('until nc fork3 7000 2>/dev/null; do usleep 50000; done'), 'it is me');
    // A fork that asks for an address anew gets its own.
    const renewed = await shells[5]!.ask('udhcpc -i eth0 -n -q -f -t 60 >/dev/null 2>&1; ip -4 addr show eth0');
    assert(renewed.includes(`inet ${nics[5]!.address}/24`), renewed);
    assert.equal(await shells[5]!.ask(`wget -q -O - http://10.0.2.2:${webPort}/echo/again`), 'again');
  });
});

/** A connection to the host's echo server that the shell keeps; `say` sends a line on it and reads the answer. */
const OPEN = `mkfifo /in /out; (nc 10.0.2.2 ${echoPort} </in >/out; echo closed $? >/ended) & exec 3>/in 4</out`;
const say = (line: string): string => `echo ${line} >&3; read -r -t 200 answer <&4; echo "$answer"`;
const END = 'while [ ! -f /ended ]; do usleep 10000; done; cat /ended; rm -f /ended /in /out; exec 3>&- 4<&-';

test('a connection outlives a checkpoint of its guest, and is reset by a rollback', () => withForks(['talker'], async (shell) => {
  await shell.ask(OPEN);
  assert.equal(await shell.ask(say('one')), 'one');
  await using checkpoint = await shell.domain.checkpoint();
  assert.equal(await shell.ask(say('two')), 'two');
  for (let i = 0; i < 20; i++) {
    await using _ = await shell.domain.checkpoint();
    assert.equal(await shell.ask(say(`line${i}`)), `line${i}`);
  }
  await shell.domain.rollback(checkpoint);
  assert.match(await shell.ask(END), /^closed \d+$/);
  assert.equal(await shell.ask(`wget -q -O - http://10.0.2.2:${webPort}/echo/after`), 'after');
  // Forwarding stays where it was, and the guest is told of the same card.
  assert.equal(shell.domain.stats().nics[0]!.isConnected, true);
}));

test('a fork and a restored guest have connections that are reset cleanly; the restored one keeps its addresses', async () => {
  const path = join(folder, 'saved.core');
  let kept: { mac: string; address: string } | undefined;
  await withForks(['original'], async (shell) => {
    kept = shell.domain.stats().nics[0]!;
    await shell.ask(OPEN);
    assert.equal(await shell.ask(say('one')), 'one');
    await shell.domain.save(path);
    await using checkpoint = await shell.domain.checkpoint();
    const [fork] = await checkpoint.fork([{ name: 'copy' }]) as [Domain];
    await limited(fork, async () => {
      const copy = new Shell(fork, 'copy');
      assert.match(await copy.ask(END), /^closed \d+$/);
      assert.equal(await copy.ask(`wget -q -O - http://10.0.2.2:${webPort}/echo/copy`), 'copy');
    });
    await fork.destroy();
    // The original's goes on.
    assert.equal(await shell.ask(say('two')), 'two');
  });
  const restored = await host.restore(path);
  await limited(restored, async () => {
    const shell = new Shell(restored, 'restored');
    assert.match(await shell.ask(END), /^closed \d+$/);
    assert.equal(await shell.ask(`wget -q -O - http://10.0.2.2:${webPort}/echo/restored`), 'restored');
    const { mac, address } = restored.stats().nics[0]!;
    assert.deepEqual({ mac, address }, { mac: kept!.mac, address: kept!.address });
  });
  await restored.destroy();
});

test('a card that a rollback brings back has its forwards again, one of them not if its port is taken by then', async () => {
  const name = 'careless';
  const forwards = [`${await freePort()}:81`, `127.0.0.1:${await freePort()}:82/tcp`] as const;
  const [, fixed] = forwards;
  await using guest = await host.create({ name, memory: '64MiB', paused: true, nics: [{ forwards }] });
  const guestPorts = (): string[] => guest.stats().nics[0]!.forwards.map((forward) => forward.replace(/^.*:/, '')).toSorted();
  assert.deepEqual(guestPorts(), ['81/tcp', '82/tcp']);
  await using checkpoint = await guest.checkpoint();
  const [fork] = await checkpoint.fork([{ name: 'careful', paused: true }]) as [Domain];
  await fork.detachNic(0);
  await fork.rollback(checkpoint);
  assert.deepEqual(fork.stats().nics[0]!.forwards, []);
  await fork.destroy();

  await guest.detachNic(0);
  assert.deepEqual(guest.stats().nics, []);
  await guest.rollback(checkpoint);
  assert.deepEqual(guestPorts(), ['81/tcp', '82/tcp']);
  assert.deepEqual(guest.stats().nics[0]!.missingForwards, []);
  // It leads to the guest: somebody listens there.
  await new Promise<void>((resolve, reject) => {
    const socket: Socket = connect(portOf(fixed), '127.0.0.1');
    socket.once('connect', () => { socket.destroy(); resolve(); }).once('error', reject);
  });
  // One that stayed keeps what it has.
  const { forwards: kept } = guest.stats().nics[0]!;
  await guest.rollback(checkpoint);
  assert.deepEqual(guest.stats().nics[0]!.forwards, kept);

  await guest.detachNic(0);
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(portOf(fixed), '127.0.0.1', resolve));
  await guest.rollback(checkpoint);
  other.close();
  assert.deepEqual(guestPorts(), ['81/tcp']);
  assert.deepEqual(guest.stats().nics[0]!.missingForwards, [fixed]);
});

test('what cannot be: a port in use, a MAC address twice, a card that is none', async () => {
  const bad = async (nics: object[], code: string): Promise<void> => {
    await assert.rejects(host.create({ ...spec, nics }), (error) => error instanceof ZazenError && error.code === code);
  };
  await bad([{ forwards: [`${webPort}:80`] }], 'ZAZEN_PORT_IN_USE');
  await bad([{ mac: '00:16:3e' }], 'ZAZEN_SPEC_NIC');
  await bad([{ network: 'no network' }], 'ZAZEN_SPEC_NETWORK');
  await bad([{ mac: '00:16:3e:00:00:01' }, { mac: '00:16:3e:00:00:01' }], 'ZAZEN_NETWORK_MAC_IN_USE');
  await bad([{ forwards: ['80'] }], 'ZAZEN_USAGE');
  assert.deepEqual(host.domains(), []);
});

/** A client that hangs up while the guest is sending must not hold anything up. */
test('a client of a forward that goes away', () => withForks(['sender'], async (shell) => {
  await shell.domain.detachNic(0);
  await shell.ask(UNTIL_GONE);
  const { forwards } = await shell.domain.attachNic({ forwards: ['0:9'] });
  await shell.ask(`${CONFIGURE}; (nc -ll -p 9 -e cat /dev/zero &) ; true`);
  const port = portOf(forwards[0]!);
  await eventually(() => new Promise<void>((resolve, reject) => {
    const socket: Socket = connect(port, '127.0.0.1');
    socket.once('data', () => { socket.destroy(); resolve(); }).once('error', reject).once('close', () => reject(new Error('closed')));
  }));
  assert.match(await shell.ask('ping -c 1 -W 200 10.0.2.2'), / 0% packet loss/);
}));
