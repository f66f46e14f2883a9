// Kernels that boot: Debian's cloud kernel to a shell on the PV console, the generic one, and the two forms in which
// distributions compress a kernel, made here from the cloud kernel. The zboot one runs with two vCPUs.

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { fetchGuest } from '../../src/guest/fetch-guest.ts';
import { collect, complaints, FAST_BOOT, PATIENT, limited, runSections, testHost } from './guests.ts';

const host = await testHost();
const directory = mkdtempSync(join(tmpdir(), 'zazen-kernels-'));
after(() => rmSync(directory, { recursive: true }));

/** `/proc/interrupts` by the name at the end of each line: the counts of all CPUs. */
function interruptCounts(text: string): Map<string, number> {
  const counts = new Map<string, number>();
  for (const line of text.split('\n')) {
    const words = line.trim().split(/\s+/);
    const numbers = words.slice(1).map(Number).filter((_, i, all) => all.slice(0, i + 1).every(Number.isInteger));
    if (numbers.length > 0) counts.set(words.at(-1)!, numbers[0]!);
  }
  return counts;
}

/**
 *     0x00 "MZ"   0x04 "zimg"   0x08 payload offset u32   0x0c payload size u32   0x18 "gzip" 0    0x40 payload
 *
 * as drivers/firmware/efi/libstub/zboot-header.S lays it out, without the EFI program that unpacks itself elsewhere.
 */
function makeZboot(image: Uint8Array): Buffer {
  const payload = gzipSync(image, { level: 1 });
  const header = Buffer.alloc(0x40);
  header.write('MZ', 0, 'latin1');
  header.write('zimg', 4, 'latin1');
  header.writeUInt32LE(header.length, 8);
  header.writeUInt32LE(payload.length, 12);
  header.write('gzip\0', 0x18, 'latin1');
  return Buffer.concat([header, payload]);
}

test('the cloud kernel boots to a shell; the console works both ways', async () => {
  const guest = await fetchGuest();
  const domain = await host.create({ name: 'cloud', cmdline: PATIENT, terminal: { rows: 33, columns: 117, type: 'vt220' } });
  const shown = collect(domain.console);
  let count = 0;
  /** Waits for a prompt, then gives what the command shows. Its echo is not taken for the end: that is computed. */
  const type = async (command: string): Promise<string> => {
    const end = new RegExp(`done-${7000 + ++count}\\s+root@cloud:~# `);
    const from = shown.text().length;
    domain.console.write(`${command}; echo done-$((7000 + ${count}))\n`);
    return (await shown.until(end)).slice(from).replaceAll('\r', '');
  };
  await limited(domain, async () => {
    const boot = await shown.until('root@cloud:~# ');
    assert.match(boot, /Booting Linux on physical CPU/);
    assert.match(boot, /zazen: init reached \d/);
    const uname = await type('uname -a');
    assert(uname.includes(`Linux cloud ${guest.kernelRelease} #1 SMP Debian`) && uname.includes(' aarch64 '), uname);
    assert.match(await type('cat /sys/hypervisor/type'), /\nxen\n/);
    assert.match(await type('cat /sys/hypervisor/uuid'), new RegExp(`\\n${domain.uuid}\\n`));
    assert.match(await type('stty size; echo $TERM'), /\n33 117\nvt220\n/);
    const counts = interruptCounts(await type('cat /proc/interrupts'));
    for (const name of ['events', 'xenbus', 'hvc_console', 'arch_timer']) assert(counts.get(name)! > 0, name);
    assert.match(await type(`echo ${'x'.repeat(900)} | wc -c`), /\n901\n/);
    // A program of its own says so, which then has the terminal: a ^C before that would reach the shell alone.
    domain.console.write("sh -c 'echo asleep-$((1 + 1)); exec sleep 100000'\n");
    await shown.until('asleep-2');
    domain.console.write('\x03');
    await shown.until(/\^C\s+root@cloud:~# /);
    assert.match(await type('echo status $?'), /status 130\n/);
    assert.deepEqual(complaints(await type('dmesg')).filter((line) => !line.startsWith('root@')), []);
    domain.console.write('exit\n');
    assert.equal(await domain.waitForShutdown(), 'poweroff');
  });
  assert.match(shown.text(), /reboot: Power down/);
  const { unknownSystemRegisters, instructionsRetired } = domain.stats();
  assert.equal(unknownSystemRegisters, 0);
  assert(instructionsRetired > 1e8);
  await domain.destroy();
});

test('the generic kernel boots', async () => {
  const { kernelRelease } = await fetchGuest({ flavour: 'generic' });
  const run = await runSections(host, { kernel: 'debian-generic', cmdline: FAST_BOOT }, {
    release: 'uname -r', type: 'cat /sys/hypervisor/type', interrupts: 'cat /proc/interrupts', log: 'dmesg',
  });
  assert.equal(run.outputOf('release'), `${kernelRelease}\n`);
  assert.doesNotMatch(kernelRelease, /cloud/);
  assert.equal(run.outputOf('type'), 'xen\n');
  assert(interruptCounts(run.outputOf('interrupts')).get('hvc_console')! > 0);
  assert.deepEqual(complaints(run.outputOf('log')), []);
});

test('an EFI zboot image boots, with two vCPUs', async () => {
  const { kernelPath } = await fetchGuest();
  const kernel = join(directory, 'vmlinuz.efi');
  writeFileSync(kernel, makeZboot(readFileSync(kernelPath)));
  const run = await runSections(host, { kernel, vcpus: 2, cmdline: FAST_BOOT }, {
    cpus: 'nproc; cat /sys/devices/system/cpu/online; grep -c ^processor /proc/cpuinfo',
    // Each pinned to a CPU of its own; field 39 of the status is the CPU that the process runs on.
    pinned: "for cpu in 0 1; do taskset -c $cpu awk '{ print $39 }' /proc/self/stat; done",
    parallel: `seq 1 20000 >d; for cpu in 0 1; do taskset -c $cpu sha256sum d & done; wait`,
    pipe: 'taskset -c 0 seq 1 20000 | taskset -c 1 cat | taskset -c 0 sha256sum; sha256sum <d',
    hotplug: `cd /sys/devices/system/cpu; echo 0 >cpu1/online; nproc; cat online
      echo 1 >cpu1/online; nproc; cat online; taskset -c 1 awk '{ print $39 }' /proc/self/stat`,
    interrupts: 'cat /proc/interrupts',
    log: 'dmesg',
  });
  assert.equal(run.outputOf('cpus'), '2\n0-1\n2\n');
  assert.equal(run.outputOf('pinned'), '0\n1\n');
  const [first, second, ...rest] = run.outputOf('parallel').trim().split('\n');
  assert.match(first!, /^[0-9a-f]{64} {2}d$/);
  assert.deepEqual([second, rest.length], [first, 0]);
  const digest = first!.slice(0, 64);
  assert.equal(run.outputOf('pipe'), `${digest}  -\n`.repeat(2));
  assert.equal(run.outputOf('hotplug'), '1\n0\n2\n0-1\n1\n');
  const wakeUps = /IPI0: +(\d+) +(\d+)/.exec(run.outputOf('interrupts'));
  assert(Number(wakeUps?.[1]) > 0 && Number(wakeUps?.[2]) > 0, 'interrupts between the CPUs');
  assert.match(run.outputOf('log'), /smp: Brought up 1 node, 2 CPUs/);
  assert.deepEqual(complaints(run.outputOf('log')), []);
});

test('an Image.gz starts', async () => {
  const { kernelPath, kernelRelease } = await fetchGuest();
  const kernel = join(directory, 'Image.gz');
  writeFileSync(kernel, gzipSync(readFileSync(kernelPath), { level: 1 }));
  const domain = await host.create({ kernel, initrd: 'none', cmdline: FAST_BOOT.replace('quiet', '') });
  await limited(domain, () => collect(domain.console).until(`Linux version ${kernelRelease} `));
  await domain.destroy();
});
