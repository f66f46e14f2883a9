// The guest's first process, a shell script for busybox, and the words it understands on the kernel command line:
//
//   zazen.exec=BASE64      run this command (with `sh -c`), then power off; without it, a shell. A longer command than
//                          the command line holds (2048 bytes in all) goes into the file /etc/zazen/command instead
//   zazen.nonce=HEX        frame the command's output (below); required for /etc/zazen/command to be looked at
//   zazen.tty=pipe|raw|cooked   how the terminal treats the command's bytes; `pipe` if left out
//   zazen.net=none         leave network cards alone; without it, each is configured by DHCP
//   zazen.winsize=ROWSxCOLUMNS  zazen.term=TERM  zazen.hostname=NAME   of the terminal; TERM is `xterm` if left out
//   root=/dev/NAME         the root file system: mounted (rootfstype=, rootflags=, ro) and made `/` before the command or
//                          the shell runs. Without a command, its own init takes over if it has one (init=PATH, /sbin/init).
//                          NAME is that of a Xen disk, xvda or xvda1, also where it is a virtio disk
//
// What the command writes reaches the console byte for byte: the terminal translates nothing on output, echoes nothing,
// and the kernel's messages stay off the console meanwhile. Around it come two lines, so that the host can tell them
// from boot messages before and kernel messages after (RS is the byte 0x1e):
//
//   RS " zazen-start NONCE" LF          everything after this LF is the command's
//   RS " zazen-exit NONCE STATUS" LF    everything before this RS was; STATUS in decimal, 128+n for signal n
//
// The second one may well begin in the middle of a line: a line feed before it could not be told from the command's,
// which would have to be held back until the next byte. The nonce keeps a command that happens to print such a line
// from being believed. It is no secret from a guest that looks for it (in /proc/cmdline): a guest may claim any status,
// that is its affair, as with any machine.
//
// Input, by `zazen.tty`: `pipe` is for programs: lines as they come, no echo, no CR to LF; the byte 4 at the start of a
// line ends the input, the byte 3 interrupts, and 0x16 before a byte takes away such a meaning. `raw` takes away all
// of them for good. `cooked` leaves the terminal as it is for a person, output translation included.

/** First line that the script writes to the console; then, after a space, the seconds since the kernel started. */
export const initReached = 'zazen: init reached';
/** What the framing lines start with, up to the nonce. */
export const startMarker = '\x1e zazen-start ';
export const exitMarker = '\x1e zazen-exit ';

/** Paths inside the initramfs. */
export const moduleListPath = 'etc/zazen/modules';
export const commandPath = 'etc/zazen/command';
/** In the guest's /run, for what comes after the initramfs has gone: busybox, this script, the command. */
const keptDir = '/run/zazen';

export const initScript = `#!/bin/busybox sh
# Made by Zazen. Mounts, loads modules, then runs one command and powers off, or gives a shell.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LOGNAME=root SHELL=/bin/sh

# Started once more, in the root file system, everything up to there has been done.
if [ "$1" != again ]; then
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs -o nosuid,mode=755 devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr

read -r uptime idle </proc/uptime
echo "${initReached} $uptime"
fi

# The last console the kernel names is the one /dev/console stands for; job control needs the terminal itself.
read -r consoles </sys/class/tty/console/active
tty=/dev/\${consoles##* }
[ -c "$tty" ] || tty=/dev/console
# A serial port that is not told when to wait loses what comes too fast.
case $tty in /dev/ttyAMA*) stty -F "$tty" crtscts ;; esac

run= command= nonce= nonet= mode=pipe winsize= hostname=zazen TERM=xterm
root= fstype=ext4 flags= rw=rw init=/sbin/init
read -r cmdline </proc/cmdline
set -f
for word in $cmdline; do
  value=\${word#*=}
  case $word in
    zazen.exec=*) run=1 command=$(echo "$value" | base64 -d; echo .) ;;
    zazen.nonce=*) nonce=$value ;;
    zazen.tty=*) mode=$value ;;
    zazen.winsize=*) winsize=$value ;;
    zazen.term=*) TERM=$value ;;
    zazen.hostname=*) hostname=$value ;;
    zazen.net=none) nonet=1 ;;
    root=/dev/*) root=\${value#/dev/} ;;
    rootfstype=*) fstype=$value ;;
    rootflags=*) flags=,$value ;;
    ro|rw) rw=$word ;;
    init=*) init=$value ;;
  esac
done
set +f
export TERM
# The dot kept newlines at the end of the command from being dropped.
command=\${command%.}
for file in /${commandPath} ${keptDir}/command; do
  [ -z "$run" ] && [ -n "$nonce" ] && [ -f $file ] && run=1 command=$(cat $file)
done

if [ "$1" != again ]; then
echo "$hostname" >/proc/sys/kernel/hostname

while read -r module parameters; do
  reason=$(insmod "$module" $parameters 2>&1) || echo "zazen: $reason" >/dev/kmsg
done </${moduleListPath}
[ -d /proc/xen ] && mount -t xenfs xenfs /proc/xen 2>/dev/null

# Disks are there when the command runs; Xen's appear a moment after their module. Whoever has the disk orders requests as
# it needs them: doing so here as well takes half as many instructions again for a small read.
for device in /sys/bus/xen/devices/vbd-*; do
  tries=0
  while [ -d "$device" ] && [ ! -d "$device/block" ] && [ $tries -lt 1000 ]; do
    usleep 2000
    tries=$((tries + 1))
  done
done
# Linux's driver of such a console hands on what it received after it has let go of its lock. With the interrupt on one CPU,
# which is the first, and the driver's thread on another, 16 bytes of fast input get lost now and then; on one they cannot.
if [ -d /sys/devices/system/cpu/cpu1 ]; then
  case $tty in /dev/hvc*) taskset -p 1 "$(pidof khvcd)" >/dev/null ;; esac
fi
for scheduler in /sys/block/xvd*/queue/scheduler /sys/block/vd*/queue/scheduler; do
  [ -f "$scheduler" ] && echo none >"$scheduler"
done
ip link set lo up
# Network cards are configured by DHCP before the command runs. Xen's appear a moment after their module; one without an
# answer costs a few seconds.
if [ -z "$nonet" ]; then
  tries=0
  while [ -d /sys/bus/xen/devices/vif-0 ] && [ ! -d /sys/class/net/eth0 ] && [ $tries -lt 1000 ]; do
    usleep 10000
    tries=$((tries + 1))
  done
  for card in /sys/class/net/eth*; do
    [ -d "$card" ] || continue
    card=\${card##*/}
    ip link set "$card" up
    udhcpc -i "$card" -n -q -f -t 20 -T 1 >/dev/null 2>&1 \\
      || echo "zazen: $card: no answer to DHCP" >/dev/kmsg
  done
fi

if [ -n "$root" ]; then
  # A virtio disk says by its serial number which one of Xen's it would be.
  disk=\${root%%[0-9]*} device= tries=0
  while [ -z "$device" ] && [ $tries -lt 1000 ]; do
    [ -b "/dev/$root" ] && device=/dev/$root
    for serial in /sys/block/vd*/serial; do
      [ -f "$serial" ] && [ "$(cat "$serial")" = "$disk" ] || continue
      name=\${serial#/sys/block/}
      device=/dev/\${name%%/*}\${root#"$disk"}
    done
    [ -n "$device" ] || usleep 10000
    tries=$((tries + 1))
  done
  mkdir -p /newroot ${keptDir}
  reason=$(mount -t "$fstype" -o "$rw$flags" "\${device:-/dev/$root}" /newroot 2>&1) || {
    echo "zazen: cannot mount the root file system /dev/$root: $reason" >"$tty"
    poweroff -f
  }
  [ -f /etc/resolv.conf ] && cp /etc/resolv.conf /run/resolv.conf
  for dir in dev proc sys run; do
    mkdir -p /newroot/$dir 2>/dev/null
    mount --move /$dir /newroot/$dir
  done
  cp /bin/busybox /init /newroot${keptDir}
  [ -f /${commandPath} ] && cp /${commandPath} /newroot${keptDir}/command
  if [ -z "$run" ] && { [ -x "/newroot$init" ] || [ -L "/newroot$init" ]; }; then
    exec switch_root /newroot "$init"
  fi
  exec switch_root /newroot ${keptDir}/busybox sh ${keptDir}/init again
fi
fi

# The buttons of a machine without Xen: who presses one wants what the host's word means to a guest of Xen. An event is 24
# bytes: time, type, code, value; the first of a key is that it goes down.
for name in /sys/class/input/event*/device/name; do
  [ "$(cat "$name" 2>/dev/null)" = 'Zazen buttons' ] || continue
  event=\${name#/sys/class/input/} event=/dev/input/\${event%%/*}
  (
    set -- $(dd bs=24 count=1 <"$event" 2>/dev/null | hexdump -v -e '12/2 "%u "')
    case \${10} in 116) action=poweroff ;; 408) action=reboot ;; *) exit ;; esac
    sync
    mount -o remount,ro / 2>/dev/null
    exec /bin/busybox $action -f
  ) &
done

[ -n "$winsize" ] && stty -F "$tty" rows "\${winsize%x*}" columns "\${winsize#*x}"

if [ -n "$run" ]; then
  # Nothing of the kernel's below an emergency may come between the command's bytes.
  echo 1 >/proc/sys/kernel/printk
  case $mode in
    raw) stty -F "$tty" raw -echo ;;
    cooked) ;;
    *) stty -F "$tty" -opost -echo -icrnl -ixon ;;
  esac
  [ -n "$nonce" ] && printf '\\036 zazen-start %s\\n' "$nonce" >"$tty"
  cd /root
  setsid -c /bin/sh -c "$command" <"$tty" >"$tty" 2>&1
  status=$?
  # Setting the terminal waits until what was written has left it.
  stty -F "$tty" -opost
  if [ -n "$nonce" ]; then
    printf '\\036 zazen-exit %s %d\\n' "$nonce" "$status" >"$tty"
  else
    printf 'zazen: exit status %d\\n' "$status" >"$tty"
  fi
  stty -F "$tty" -opost
else
  cd /root
  [ -x /bin/bash ] && SHELL=/bin/bash
  while :; do
    setsid -c $SHELL -l <"$tty" >"$tty" 2>&1
    # Left by \`exit\` or the end of input: power off. Killed: start another one.
    [ $? -lt 128 ] && break
  done
fi
sync
if [ "$1" = again ]; then
  # Whoever is left has had its time: the root file system is to be in order.
  kill -9 -1
  tries=0
  while ! mount -o remount,ro / 2>/dev/null && [ $tries -lt 100 ]; do
    usleep 20000
    tries=$((tries + 1))
  done
fi
poweroff -f
`;

/** What udhcpc of Debian's busybox runs with what it was told in its environment: address, mask, MTU, route, names. */
const dhcpScript = `#!/bin/busybox sh
case $1 in
  deconfig) ip link set "$interface" up; ip -4 addr flush dev "$interface" ;;
  bound|renew)
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    ip -4 addr flush dev "$interface"
    ip addr add "$ip/$mask" brd + dev "$interface"
    for gateway in $router; do ip route add default via "$gateway" dev "$interface" 2>/dev/null; done
    { [ -n "$domain" ] && echo "search $domain"; for server in $dns; do echo "nameserver $server"; done; } >/etc/resolv.conf
    ;;
esac
exit 0
`;

/** Files that make the guest a place to work in, by path. */
export const etcFiles: Readonly<Record<string, string>> = {
  'etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n',
  'etc/group': 'root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n',
  'etc/hosts': '127.0.0.1 localhost\n::1 localhost\n',
  // Without -f, busybox asks its own init, which is not the one that runs here.
  'etc/profile': "export PS1='\\u@\\h:\\w\\$ '\nalias ll='ls -l'\n"
    + "alias poweroff='poweroff -f' reboot='reboot -f' halt='halt -f'\n",
  'etc/nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files dns\n',
};

/**
 * Programs by path. The kernel runs these two when the host asks it, over `control/shutdown` in the store, to power off
 * or reboot.
 */
export const programFiles: Readonly<Record<string, string>> = {
  'usr/sbin/poweroff': '#!/bin/busybox sh\nsync\npoweroff -f\n',
  'usr/sbin/reboot': '#!/bin/busybox sh\nsync\nreboot -f\n',
  'etc/udhcpc/default.script': dhcpScript,
};
