// Debian's own xenstore tools in a guest, against the store that the toolstack sees.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { prepareGuest } from '../../src/guest/initramfs.ts';
import { fetchPackages } from '../../src/guest/packages.ts';
import { collect, FAST_BOOT, limited, testHost } from './guests.ts';

const host = await testHost({ memory: '1GiB' });

/** The guest waits for the host by the watch, the host for the guest by what it writes and stores. */
const SCRIPT = `
  echo "name $(xenstore-read name) domid $(xenstore-read domid)"
  echo "list $(xenstore-list /local/domain/$(xenstore-read domid) | sort | tr '\\n' ' ')"
  xenstore-write data/number 42 data/text 'two words' data/deep/er ''
  xenstore-ls data | sed 's/^/tree /'
  xenstore-exists data/text && xenstore-rm data/text; xenstore-exists data/text || echo 'text is gone'
  xenstore-write name other || echo 'name is not for the guest to write'
  xenstore-write /tool/x 1 || echo 'nor are the tools'
  xenstore-read /local/domain/0/secret || echo 'nor may it read others'
  # The first event comes at once and tells that the watch is in place; the second one ends it.
  xenstore-watch -n 2 data/ask
  echo "asked $(xenstore-read data/ask)"
  xenstore-write data/answer "$(xenstore-read data/ask | rev)"
  seq 1 20 | while read -r n; do xenstore-write data/many/$n "value $n"; done
  seq 21 200 | sed 's|.*|data/many/& value-&|' | xargs xenstore-write
  xenstore-list data/many | wc -l
  dmesg | grep -i -E 'error|xenbus.*(fail|timeout)' | sed 's/^/kernel /'
  cat
`;

test('a guest and the toolstack share the store, in both directions', async () => {
  const { initramfsPath: initrd } = await prepareGuest({ trees: [await fetchPackages(['xenstore-utils'], { withDependencies: true })] });
  const domain = await host.create({ name: 'shared', initrd, cmdline: FAST_BOOT, exec: SCRIPT });
  const home = `/local/domain/${domain.id}`;
  host.store.write('/local/domain/0/secret', 'x');
  const output = collect(domain.exec!.output);
  const answered = Promise.withResolvers<void>();
  const seen: string[] = [];
  const stop = host.store.watch(`${home}/data`, (path) => {
    seen.push(path.slice(home.length));
    if (host.store.exists(`${home}/data/answer`)) answered.resolve();
  });
  await limited(domain, async () => {
    await output.until('\ndata/ask\n');
    host.store.write(`${home}/data/ask`, 'niaga dna');
    await Promise.race([answered.promise, domain.waitForShutdown()]);
    assert.equal(host.store.read(`${home}/data/answer`), 'and again', output.text());
    domain.exec!.input.end();
    assert.equal((await domain.exec!.result).status, 0);
    await domain.waitForShutdown();
  });
  stop();
  const [name, list, ...lines] = output.text().trimEnd().split('\n');
  assert.equal(name, `name shared domid ${domain.id}`);
  for (const entry of ['console', 'control', 'data', 'device', 'memory', 'vm']) assert(list!.split(' ').includes(entry), entry);
  assert.deepEqual(lines, [
    'tree number = "42"', 'tree text = "two words"', 'tree deep = ""', 'tree  er = ""', 'text is gone',
    'xenstore-write: could not write path name', 'name is not for the guest to write',
    'xenstore-write: could not write path /tool/x', 'nor are the tools',
    'xenstore-read: couldn\'t read path /local/domain/0/secret', 'nor may it read others',
    'data/ask', 'data/ask', 'asked niaga dna', '200',
  ]);
  assert.equal(host.store.list(`${home}/data/many`)?.length, 200);
  assert.equal(host.store.read(`${home}/data/many/20`), 'value 20');
  assert.equal(host.store.read(`${home}/data/many/200`), 'value-200');
  assert.equal(host.store.read(`${home}/data/number`), '42');
  assert.equal(host.store.read(`${home}/name`), 'shared');
  assert(seen.includes('/data/number') && seen.includes('/data/many/1'));
  await domain.destroy();
  assert.equal(host.store.exists(home), false);
});
