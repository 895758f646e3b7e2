// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The kernel module's side of the daemon, from inside a kernel, for tests: it has the name of the mirror's module,
 * calls the daemon as that does, and sends numbered packets instead of a disk's. What comes in is held against what
 * the other machine's copy of this file must have sent, byte for byte. It mirrors nothing and touches no disk.
 *
 * /proc/hadm_test tells what was counted. The parameter rounds is how many packets are still to be sent, data and
 * meta, to every connected node: writing N,N there has it send so many from now on, 0,0 stops it.
 *
 * Four threads: per link one that calls, shakes hands and reads, and one that sends. The first owns the socket; the
 * second uses it under tx_lock only while the link is up.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/in.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/tcp.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#define HADM_MAGIC	0x3e953ac16a4227b9ULL
#define HADM_PORT	9998
#define ALL_DEVICES	255
#define NODES		32

/* A blocked send or receive looks up so often whether it shall end; and a link is redialled after so long. */
#define LOOK_UP	(HZ / 10)
#define REDIAL	HZ

enum {
	NC_CONN_STATE		= 14,
	NC_STATE		= 19,
	ND_SBIO			= 36,
	KERN_HANDSHAKE_D	= 57,
	KERN_HANDSHAKE_D_ACK	= 58,
	KERN_HANDSHAKE_M	= 59,
	KERN_HANDSHAKE_M_ACK	= 60,
};

struct header {
	__le64 magic;
	__le32 len;
	u8 type;
	u8 node_type;
	u8 dev_id;
	u8 pad;
	__le64 uuid;		/* of ours: which session the sender takes it to be */
	__le64 bwr_seq;		/* of ours: which packet of that session, from 0 */
	__le32 node_from;
	__le32 node_to;
	u8 rest[88];		/* opaque to the daemon */
};
static_assert(sizeof(struct header) == 128);

struct packet {
	struct header header;
	u8 payload[4096];
};

/* One class of packets to and from one node. The sender owns the first half, the reader the second. */
struct flow {
	u64 tx_session, tx_next, tx_sum;
	u64 rx_session, rx_next, rx_sum, rx_gaps;
};

struct link {
	const char *name;
	u8 hello, ack, kind;
	u32 payload;		/* longest payload */
	unsigned long pause;	/* after every 16 rounds, us */
	struct socket *sock;
	struct mutex tx_lock;	/* held while sock is used for sending */
	bool up;
	struct task_struct *reader, *sender;
	struct packet in, expected, out;
	struct flow flows[NODES];
};

static struct link links[] = {
	{ .name = "data", .hello = KERN_HANDSHAKE_D, .ack = KERN_HANDSHAKE_D_ACK, .kind = ND_SBIO, .payload = 4096 },
	{ .name = "meta", .hello = KERN_HANDSHAKE_M, .ack = KERN_HANDSHAKE_M_ACK, .kind = NC_STATE, .payload = 256,
	  .pause = 8000 },
};
#define META (&links[1])

static unsigned long rounds[ARRAY_SIZE(links)];
module_param_array(rounds, ulong, NULL, 0600);

/* What came in and must not have. */
enum { BAD_HEADER, BAD_ORDER, BAD_BYTES, BADS };
static const char *const bad_names[BADS] = { "bad_header", "bad_order", "bad_bytes" };
static atomic64_t bads[BADS];

/* Written by the meta link's reader alone. */
static int node = -1;
static u32 peers;
static u64 sessions[NODES];	/* when the present or last one began, ns: numbers sessions across reloads */
static u64 ends[NODES];

static void bad(const struct link *link, int what, const struct header *header)
{
	atomic64_inc(&bads[what]);
	pr_err_ratelimited("%s: %s: type %u len %u from %u to %#x session %llu number %llu\n", link->name,
			   bad_names[what], header->type, le32_to_cpu(header->len), le32_to_cpu(header->node_from),
			   le32_to_cpu(header->node_to), le64_to_cpu(header->uuid), le64_to_cpu(header->bwr_seq));
}

/* All bytes of a packet follow from these few numbers. Returns its length. */
static size_t build(struct packet *packet, const struct link *link, u32 from, u32 to, u64 session, u64 number)
{
	u32 random = (u32)(session ^ session >> 32) + (u32)number * 2654435761U + link->kind + (from << 16) + to;
	size_t len, i;

	random = random * 1664525 + 1013904223;
	len = (random >> 8) % (link->payload + 1);
	packet->header = (struct header) {
		.magic = cpu_to_le64(HADM_MAGIC),
		.len = cpu_to_le32(len),
		.type = link->kind,
		.uuid = cpu_to_le64(session),
		.bwr_seq = cpu_to_le64(number),
		.node_from = cpu_to_le32(from),
		.node_to = cpu_to_le32(to),
	};
	len += sizeof(packet->header);
	for (i = offsetof(struct header, rest); i < len; i++) {
		random = random * 1664525 + 1013904223;
		((u8 *)packet)[i] = random >> 24;
	}
	return len;
}

/* Sessions that ended are counted here, those that began get their number. */
static void set_peers(u32 now)
{
	u32 changed = now ^ peers;
	unsigned int i;

	for (i = 0; i < NODES; i++) {
		if (!(changed & BIT(i)))
			continue;
		if (now & BIT(i))
			WRITE_ONCE(sessions[i], ktime_get_real_ns());
		else
			WRITE_ONCE(ends[i], ends[i] + 1);
	}
	/* A sender that sees the bit sees the number, too. */
	smp_store_release(&peers, now);
}

/* All of it. Only whoever sends now may send: the reader before the link is up, afterwards the sender. */
static int transfer(struct link *link, void *bytes, size_t len, bool sending)
{
	size_t done = 0;

	while (done < len) {
		struct kvec vec = { .iov_base = bytes + done, .iov_len = len - done };
		struct msghdr msg = { .msg_flags = MSG_NOSIGNAL };
		int n = sending ? kernel_sendmsg(link->sock, &msg, &vec, 1, vec.iov_len) :
				  kernel_recvmsg(link->sock, &msg, &vec, 1, vec.iov_len, 0);

		if (kthread_should_stop())
			return -EINTR;
		if (n == -EAGAIN)
			continue;
		if (n <= 0)
			return n ? : -ECONNRESET;
		done += n;
	}
	return 0;
}

static int shake_hands(struct link *link)
{
	/* The mirror's module leaves the magic out of this one. */
	struct header header = { .type = link->hello };
	int err;

	err = transfer(link, &header, sizeof(header), true);
	if (!err)
		err = transfer(link, &header, sizeof(header), false);
	if (!err && (header.type != link->ack || header.len))
		err = -EPROTO;
	return err;
}

static int dial(struct link *link)
{
	struct sockaddr_in daemon = {
		.sin_family = AF_INET,
		.sin_port = htons(HADM_PORT),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int err;

	err = sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP, &link->sock);
	if (err)
		return err;
	link->sock->sk->sk_rcvtimeo = LOOK_UP;
	link->sock->sk->sk_sndtimeo = LOOK_UP;
	tcp_sock_set_nodelay(link->sock->sk);
	err = kernel_connect(link->sock, (struct sockaddr *)&daemon, sizeof(daemon), 0);
	if (!err)
		err = shake_hands(link);
	if (err) {
		sock_release(link->sock);
		return err;
	}
	pr_info("%s link up\n", link->name);
	WRITE_ONCE(link->up, true);
	return 0;
}

static void hang_up(struct link *link, int err)
{
	pr_info("%s link down: %d\n", link->name, err);
	WRITE_ONCE(link->up, false);
	/* Wakes the sender, which then lets go of the lock. */
	kernel_sock_shutdown(link->sock, SHUT_RDWR);
	if (link == META)
		set_peers(0);
	mutex_lock(&link->tx_lock);
	sock_release(link->sock);
	link->sock = NULL;
	mutex_unlock(&link->tx_lock);
}

static void learn_peers(struct link *link, const struct header *header)
{
	u32 me = le32_to_cpu(header->node_from);

	if (me >= NODES || header->dev_id != ALL_DEVICES || header->len || header->node_type ||
	    (node >= 0 && me != node)) {
		bad(link, BAD_HEADER, header);
		return;
	}
	node = me;
	set_peers(le32_to_cpu(header->node_to));
}

/* What is wrong with a packet, or BADS. */
static int judge(struct link *link, const struct flow *flow, size_t len)
{
	const struct header *header = &link->in.header;
	u64 session = le64_to_cpu(header->uuid), number = le64_to_cpu(header->bwr_seq);
	u32 from = le32_to_cpu(header->node_from), to = le32_to_cpu(header->node_to);
	int me = READ_ONCE(node);

	if (from >= NODES || from == me || (me >= 0 ? to != BIT(me) : hweight32(to) != 1))
		return BAD_HEADER;
	if (build(&link->expected, link, from, to, session, number) != len || memcmp(&link->in, &link->expected, len))
		return BAD_BYTES;
	if (session < flow->rx_session || (session == flow->rx_session && number < flow->rx_next))
		return BAD_ORDER;
	return BADS;
}

static void check(struct link *link, size_t len)
{
	const struct header *header = &link->in.header;
	struct flow *flow = &link->flows[le32_to_cpu(header->node_from) % NODES];
	u64 session = le64_to_cpu(header->uuid), number = le64_to_cpu(header->bwr_seq);
	int verdict = judge(link, flow, len);

	if (verdict != BADS) {
		bad(link, verdict, header);
		return;
	}
	/* The very first packet after this module was loaded may have any number: its sender was there before. */
	if (flow->rx_sum && number != (session == flow->rx_session ? flow->rx_next : 0)) {
		WRITE_ONCE(flow->rx_gaps, flow->rx_gaps + 1);
		pr_info("%s: gap: session %llu: %llu after %llu of session %llu\n", link->name, session, number,
			flow->rx_next, flow->rx_session);
	}
	WRITE_ONCE(flow->rx_session, session);
	WRITE_ONCE(flow->rx_next, number + 1);
	WRITE_ONCE(flow->rx_sum, flow->rx_sum + 1);
}

static int receive_packets(struct link *link)
{
	struct packet *in = &link->in;
	size_t len;
	int err;

	for (;;) {
		err = transfer(link, in, sizeof(in->header), false);
		if (err)
			return err;
		len = le32_to_cpu(in->header.len);
		if (in->header.magic != cpu_to_le64(HADM_MAGIC) || len > link->payload) {
			bad(link, BAD_HEADER, &in->header);
			return -EPROTO;
		}
		err = transfer(link, in->payload, len, false);
		if (err)
			return err;
		if (in->header.type == link->kind)
			check(link, sizeof(in->header) + len);
		else if (link == META && in->header.type == NC_CONN_STATE)
			learn_peers(link, &in->header);
		else
			bad(link, BAD_HEADER, &in->header);
	}
}

static int reader(void *arg)
{
	struct link *link = arg;

	while (!kthread_should_stop()) {
		if (!dial(link))
			hang_up(link, receive_packets(link));
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule_timeout(REDIAL);
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

static int send_packet(struct link *link, unsigned int to)
{
	struct flow *flow = &link->flows[to];
	u64 session = READ_ONCE(sessions[to]);
	size_t len;
	int err;

	if (flow->tx_session != session) {
		WRITE_ONCE(flow->tx_session, session);
		WRITE_ONCE(flow->tx_next, 0);
	}
	len = build(&link->out, link, node, BIT(to), session, flow->tx_next);
	/* One that was sent in part is gone, too: its number is never used again. */
	WRITE_ONCE(flow->tx_next, flow->tx_next + 1);
	err = transfer(link, &link->out, len, true);
	if (!err)
		WRITE_ONCE(flow->tx_sum, flow->tx_sum + 1);
	return err;
}

static int sender(void *arg)
{
	struct link *link = arg;
	unsigned long *quota = &rounds[link - links];

	while (!kthread_should_stop()) {
		u32 to = smp_load_acquire(&peers);
		unsigned long left = READ_ONCE(*quota);
		unsigned int i;
		int err = 0;

		if (!to || !left || !READ_ONCE(link->up)) {
			schedule_timeout_interruptible(LOOK_UP / 10 + 1);
			continue;
		}
		mutex_lock(&link->tx_lock);
		for (i = 0; i < NODES && READ_ONCE(link->up) && !err; i++) {
			if (to & BIT(i))
				err = send_packet(link, i);
		}
		mutex_unlock(&link->tx_lock);
		/* Unless it was given a new one meanwhile. */
		cmpxchg(quota, left, left - 1);
		if (err)
			schedule_timeout_interruptible(LOOK_UP);
		if (link->pause && left % 16 == 0)
			usleep_range(link->pause, 2 * link->pause);
		cond_resched();
	}
	return 0;
}

static int show(struct seq_file *file, void *unused)
{
	unsigned int i;
	struct link *link;

	seq_printf(file, "node %d\npeers %#x\n", node, peers);
	for (i = 0; i < BADS; i++)
		seq_printf(file, "%s %lld\n", bad_names[i], atomic64_read(&bads[i]));
	for (link = links; link < links + ARRAY_SIZE(links); link++)
		seq_printf(file, "%s_up %d\n%s_left %lu\n", link->name, link->up, link->name, rounds[link - links]);
	for (i = 0; i < NODES; i++) {
		if (!sessions[i])
			continue;
		seq_printf(file, "%u_ends %llu\n", i, ends[i]);
		for (link = links; link < links + ARRAY_SIZE(links); link++) {
			const struct flow *flow = &link->flows[i];

			seq_printf(file, "%u_%s_sent %llu %llu %llu\n", i, link->name, flow->tx_session, flow->tx_next,
				   flow->tx_sum);
			seq_printf(file, "%u_%s_received %llu %llu %llu\n", i, link->name, flow->rx_session,
				   flow->rx_next, flow->rx_sum);
			seq_printf(file, "%u_%s_gaps %llu\n", i, link->name, flow->rx_gaps);
		}
	}
	return 0;
}

static void stop_link(struct link *link)
{
	if (!IS_ERR_OR_NULL(link->sender))
		kthread_stop(link->sender);
	if (!IS_ERR_OR_NULL(link->reader))
		kthread_stop(link->reader);
}

static int start_link(struct link *link)
{
	mutex_init(&link->tx_lock);
	link->reader = kthread_run(reader, link, "hadm_%s_rx", link->name);
	if (IS_ERR(link->reader))
		return PTR_ERR(link->reader);
	link->sender = kthread_run(sender, link, "hadm_%s_tx", link->name);
	return PTR_ERR_OR_ZERO(link->sender);
}

static int __init hadm_init(void)
{
	int err;

	if (!proc_create_single("hadm_test", 0400, NULL, show))
		return -ENOMEM;
	err = start_link(&links[0]);
	if (!err)
		err = start_link(&links[1]);
	if (err) {
		stop_link(&links[0]);
		stop_link(&links[1]);
		remove_proc_entry("hadm_test", NULL);
	}
	return err;
}

static void __exit hadm_exit(void)
{
	remove_proc_entry("hadm_test", NULL);
	stop_link(&links[0]);
	stop_link(&links[1]);
}

module_init(hadm_init);
module_exit(hadm_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Plays the HADM kernel module for tests of hadmd");
