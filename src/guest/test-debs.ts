// Debian packages for tests, made byte by byte.

/** @param dataName of the member with the files, such as `data.tar.xz` @param control the member with what dpkg is to know */
export function makeDeb(dataName: string, data: Uint8Array, control: Uint8Array = Buffer.from('odd')): Buffer {
  const member = (name: string, content: Uint8Array): Buffer[] => {
    const size = String(content.length).padEnd(10);
    const owner = `${'0'.padEnd(12)}${'0'.padEnd(6)}${'0'.padEnd(6)}`;
    const header = `${name.padEnd(16)}${owner}${'100644'.padEnd(8)}${size}\`\n`;
    return [Buffer.from(header), Buffer.from(content), Buffer.alloc(content.length & 1, '\n')];
  };
  const version = member('debian-binary', Buffer.from('2.0\n'));
  return Buffer.concat([
    Buffer.from('!<arch>\n'), ...version, ...member('control.tar', control), ...member(dataName, data),
  ]);
}
