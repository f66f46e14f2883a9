// A machine with emulated devices (type hvm): a stock kernel without Xen's interfaces, its devices as the guest sees
// them, and every verb on it.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Checkpoint, Domain } from '../../src/host/index.ts';
import { FAST_BOOT, HOST_SIZES, assertTime, blockUntilReceived, collect, complaints, limited, runSections, testHost } from './guests.ts';
import { Shell, SHELL } from './shell.ts';

const folder = mkdtempSync(join(tmpdir(), 'zazen-hvm-'));
after(() => rmSync(folder, { recursive: true }));
const host = await testHost({ memory: '1GiB' });
const spec = { type: 'hvm' as const, memory: '128MiB', cmdline: FAST_BOOT };

/** With the shell at its serial port, booted once. */
let booted: Checkpoint;
before(async () => {
  const domain = await host.create({ ...spec, exec: SHELL });
  domain.exec!.output.resume();
  await limited(domain, async () => {
    await domain.exec!.started;
    await new Shell(domain, 'first').ask('true');
    booted = await domain.checkpoint();
  });
  await domain.destroy();
});

async function withFork(work: (domain: Domain, shell: Shell) => Promise<void>): Promise<void> {
  const [domain] = await booted.fork();
  await limited(domain!, () => work(domain!, new Shell(domain!, `fork${domain!.id}`)));
  await domain!.destroy();
}

test('boots to a command without a hypercall, with all its devices, on several vCPUs', async () => {
  // With 32-bit addresses and with 64-bit ones.
  for (const on of [host, await testHost({ memory: HOST_SIZES[1] })]) {
    const image = join(folder, 'disk');
    const content = randomBytes(2 ** 20);
    writeFileSync(image, content);
    const input = randomBytes(200_000);
    const since = Date.now();
    const run = await runSections(on, { ...spec, cmdline: spec.cmdline.replace('quiet', ''), vcpus: 2, disks: [{ path: image, format: 'raw' }] }, {
      hypervisor: 'ls /sys/hypervisor; [ ! -e /proc/xen/capabilities ]',
      consoles: 'cat /sys/class/tty/console/active; nproc',
      clock: 'cat /sys/class/rtc/rtc0/name /sys/class/rtc/rtc0/since_epoch; date +%s',
      // A guest that is kept from its core for two seconds sets one that is past, which is none: it sets another.
      alarm: 'heard() { awk "/rtc-pl031/ { print \\$2 + \\$3 }" /proc/interrupts; }; until [ $(heard) -gt 0 ]; do '
        + 'echo $(($(cat /sys/class/rtc/rtc0/since_epoch) + 2)) >/sys/class/rtc/rtc0/wakealarm;'
        + 'while [ -n "$(cat /sys/class/rtc/rtc0/wakealarm)" ]; do usleep 50000; done; done; echo heard',
      entropy: 'cat /sys/class/misc/hw_random/rng_current; head -c 4096 /dev/hwrng | sha256sum; head -c 4096 /dev/hwrng | sha256sum',
      disk: 'sha256sum </dev/vda; cat /sys/block/vda/size; dd if=/dev/vda bs=64k skip=3 count=1 2>/dev/null '
        + '| dd of=/dev/vda bs=64k seek=9 conv=fsync 2>/dev/null; cat /sys/block/vda/serial',
      input: 'sha256sum',
    }, input);
    assert.equal(run.outputOf('hypervisor'), '');
    assert.equal(run.outputOf('consoles'), 'ttyAMA0\n2\n');
    const [name, ...times] = run.outputOf('clock').trim().split('\n');
    assert.match(name!, /rtc-pl031/);
    assert.equal(times.length, 2);
    for (const time of times) assertTime(Number(time), since);
    assert.equal(run.outputOf('alarm'), 'heard\n');
    const [rng, one, two] = run.outputOf('entropy').trim().split('\n');
    assert.match(rng!, /virtio_rng/);
    assert.notEqual(one, two);
    const hash = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
    assert.equal(run.outputOf('disk'), `${hash(content)}  -\n2048\nxvda`);
    content.copyWithin(9 * 65536, 3 * 65536, 4 * 65536);
    assert.deepEqual(readFileSync(image), content);
    assert.equal(run.outputOf('input'), `${hash(input)}  -\n`);
    assert.deepEqual(complaints(run.log), []);
  }
});

test('a command ends with its status', async () => {
  const domain = await host.create({ ...spec, exec: 'echo words; exit 7' });
  const output = collect(domain.exec!.output);
  await limited(domain, async () => {
    assert.deepEqual(await domain.exec!.result, { status: 7 });
    assert.equal(await domain.waitForShutdown(), 'poweroff');
  });
  assert.equal(output.text(), 'words\n');
  const { hypercalls, emulated } = domain.stats();
  assert.equal(hypercalls, 0);
  assert(emulated!.accesses > emulated!.hostCalls && emulated!.hostCalls > 0);
  await domain.destroy();
});

test('checkpoint, rollback, forks, pause, and what it cannot do', async () => {
  await withFork(async (domain, shell) => {
    assert.equal(await shell.ask('value=one; echo $value'), 'one');
    await using checkpoint = await domain.checkpoint();
    for (let i = 0; i < 3; i++) {
      assert.equal(await shell.ask('value=two; dmesg -c >/dev/null; echo $value'), 'two');
      await domain.rollback(checkpoint);
      assert.equal(await shell.ask('echo $value'), 'one');
    }
    const forks = await checkpoint.fork(4);
    const answers = await Promise.all(forks.map((fork, i) => new Shell(fork, `f${i}`).ask(`value=$value-${i}; echo $value`)));
    assert.deepEqual(answers, [0, 1, 2, 3].map((i) => `one-${i}`));
    const seeds = await Promise.all(forks.map((fork, i) => new Shell(fork, `s${i}`).ask('head -c 16 /dev/hwrng | md5sum')));
    // What the kernel had fetched before is the same in all; what the device gives is not.
    await Promise.all(forks.map((fork, i) => new Shell(fork, `t${i}`).ask('head -c 65536 /dev/hwrng | md5sum')))
      .then((sums) => assert.equal(new Set(sums).size, 4, seeds.join()));
    for (const fork of forks) await fork.destroy();
    await domain.pause();
    await domain.unpause();
    assert.equal(await shell.ask('echo $value'), 'one');
    for (const refused of [() => domain.attachNic(), () => domain.attachDisk({ path: '/nowhere.img' })]) {
      await assert.rejects(refused, { code: 'ZAZEN_HVM_FIXED', hint: /create it with type pvh/ });
    }
  });
});

test('its buttons turn it off and start it again, if there is a driver for them', async () => {
  for (const reason of ['poweroff', 'reboot'] as const) {
    await withFork(async (domain, shell) => {
      await shell.ask('true');
      await domain.shutdown({ reason });
      assert.equal(await domain.waitForShutdown(), reason);
    });
  }
  await withFork(async (domain, shell) => {
    await shell.ask('rmmod virtio_input');
    for (const reason of ['poweroff', 'reboot'] as const) {
      await assert.rejects(domain.shutdown({ reason }), { code: 'ZAZEN_HVM_UNHEARD' });
    }
    assert.equal(await shell.ask('echo runs'), 'runs');
    // Its driver finds them again, and now it is the shell that looks at them.
    await shell.ask('insmod /lib/modules/virtio_input.ko; until exec 4</dev/input/event0; do usleep 1000; done');
    await domain.shutdown({ reason: 'reboot' });
    const keys = await shell.ask('dd bs=24 count=4 <&4 2>/dev/null | hexdump -v -e \'12/2 "%u " "\\n"\' | cut -d" " -f9-11');
    assert.equal(keys, '1 408 1\n0 0 0\n1 408 0\n0 0 0');
  });
});

test('saved, and restored on another host', async () => {
  const path = join(folder, 'hvm.core');
  await withFork(async (domain, shell) => {
    assert.equal(await shell.ask('value=saved; echo $value'), 'saved');
    await domain.save(path);
  });
  const other = await testHost({ memory: '512MiB' });
  for (const lazy of [true, false]) {
    const again = await other.restore(path, { lazy });
    await limited(again, async () => {
      const shell = new Shell(again, `again${again.id}`);
      assert.equal(await shell.ask('echo $value'), 'saved');
      const since = Date.now();
      assertTime(Number(await shell.ask('cat /sys/class/rtc/rtc0/since_epoch')), since);
      assertTime(Number(await shell.ask('date -s @1000000000 >/dev/null; hwclock -u -s; date +%s')), since);
      assert.match(await shell.ask('head -c 100 /dev/hwrng | wc -c'), /100/);
    });
    await again.destroy();
  }
});

test('the virtio console: bytes both ways, across checkpoint and fork', async () => {
  await withFork(async (domain, shell) => {
    const stream = domain.attachConsole('virtio');
    const text = collect(stream);
    await shell.ask('exec 3<>/dev/hvc0; stty -F /dev/hvc0 raw -echo; while read -r line <&3; do echo "heard $line" >&3; done & true');
    stream.write('first\n');
    await text.until('heard first\n');
    await using checkpoint = await domain.checkpoint();
    stream.write('second\n');
    await text.until('heard second\n');
    await domain.rollback(checkpoint);
    stream.write('third\n');
    await text.until('heard third\n');
    const [fork] = await checkpoint.fork();
    const forked = fork!.attachConsole('virtio');
    const forkedText = collect(forked);
    forked.write('fourth\n');
    await forkedText.until('heard fourth\n');
    assert.match(forkedText.text(), /heard first/);
    assert.doesNotMatch(forkedText.text(), /heard second/);
    await fork!.destroy();
  });
  const xen = await host.create({ memory: '128MiB', paused: true });
  assert.throws(() => xen.attachConsole('virtio'), { code: 'ZAZEN_CONSOLE_MISSING' });
  await xen.destroy();
});

test('disk and network card across checkpoint, rollback, fork and image', async () => {
  const image = join(folder, 'state');
  writeFileSync(image, Buffer.alloc(2 ** 20));
  const server = createServer((_request, response) => response.end('from the host\n'.repeat(10_000))).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo;
  const domain = await host.create({ ...spec, exec: SHELL, disks: [{ path: image, format: 'raw' }], nics: [{}] });
  domain.exec!.output.resume();
  const path = join(folder, 'devices.core');
  await limited(domain, async () => {
    await domain.exec!.started;
    const shell = new Shell(domain, 'devices');
    const put = (word: string): string => `echo ${word} | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null`;
    const get = 'echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda';
    await shell.ask('ip link set eth0 up; udhcpc -i eth0 -n -q -t 60 -s /bin/true >/tmp/lease 2>&1');
    const lease = await shell.ask('cat /tmp/lease');
    const address = /lease of ([\d.]+)/.exec(lease)?.[1];
    assert(address !== undefined, lease);
    const gateway = address.replace(/\.\d+$/, '.2');
    await shell.ask(`ip addr add ${address}/24 dev eth0; ip route add default via ${gateway}`);
    await shell.ask(`(while ping -c 1 -W 200 ${gateway}; do true; done >/dev/null 2>&1) & true`);
    blockUntilReceived(domain, 20);
    await shell.ask('kill %1');
    assert.match(await shell.ask(`${put('one')}; ${get}`), /one/);
    await using checkpoint = await domain.checkpoint();
    assert.match(await shell.ask(`${put('two')}; ${get}`), /two/);
    await domain.rollback(checkpoint);
    assert.match(await shell.ask(get), /one/);
    const [fork] = await checkpoint.fork();
    const forked = new Shell(fork!, 'forked');
    assert.match(await forked.ask(`${get}; ${put('three')}; ${get}`), /one\nthree/);
    assert.match(await shell.ask(get), /one/);
    for (const each of [shell, forked]) {
      const sum = await each.ask(`wget -q -O - http://${gateway}:${port}/ | md5sum`);
      assert.match(sum, new RegExp(createHash('md5').update('from the host\n'.repeat(10_000)).digest('hex')), await each.ask('ip addr'));
    }
    await fork!.save(path);
    await fork!.destroy();
  });
  await domain.destroy();
  const again = await host.restore(path);
  await limited(again, async () => {
    assert.match(await new Shell(again, 'again').ask('head -n 1 /dev/vda'), /three/);
  });
  await again.destroy();
  server.close();
  await booted.destroy();
});
