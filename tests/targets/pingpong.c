/* SPDX-License-Identifier: Apache-2.0
 *
 * Two processes that send a number to each other over a socket: what one sends before the
 * other receives it happened before, whatever the clocks say.
 *
 *   pingpong listen PATH     answers every message
 *   pingpong connect PATH    `burst N` sends N messages, each after the answer to the last
 *
 * The end of receive_message is after the begin of the other's send_message.
 */
#include "harness.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

COUNTER(send_message);
COUNTER(receive_message);

static int end = -1;

TRACED void send_message(long number)
{
	REQUIRE("send", send(end, &number, sizeof number, MSG_NOSIGNAL) == sizeof number);
}

/* -1 where none will come. */
TRACED long receive_message(void)
{
	long number = -1;

	while (!__atomic_load_n(&harness.stop, __ATOMIC_RELAXED)) {
		ssize_t got = recv(end, &number, sizeof number, 0);

		if (got == sizeof number)
			return number;
		if (got == 0)
			break;
		REQUIRE("recv", got < 0 && (errno == EAGAIN || errno == EINTR));
	}
	return -1;
}

static void set_end(int fd)
{
	/* So that it is seen in time that the program is to end. */
	struct timeval limit = { 0, 100000 };

	REQUIRE("SO_RCVTIMEO", !setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	end = fd;
}

static int listener = -1;

static void answer(long index)
{
	struct timeval limit = { 0, 100000 };
	long number;
	int fd = -1;

	(void)index;
	REQUIRE("SO_RCVTIMEO", !setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
	while (harness_running() && fd < 0)
		fd = accept(listener, NULL, NULL);
	if (fd < 0)
		return;
	set_end(fd);
	while ((number = CALL(receive_message)) >= 0) {
		CALL(send_message, number + 1);
		harness_iterated();
	}
}

static void burst(long count)
{
	for (long number = 0; number < count; number++) {
		CALL(send_message, number);
		CHECK("answer", CALL(receive_message), number + 1);
		harness_iterated();
	}
	harness_reply("burst done %ld", count);
}

int main(int argc, char **argv)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	REQUIRE("arguments", argc == 3 && strlen(argv[2]) < sizeof address.sun_path);
	strcpy(address.sun_path, argv[2]);
	if (!strcmp(argv[1], "listen")) {
		REQUIRE("bind", !bind(fd, (struct sockaddr *)&address, sizeof address) && !listen(fd, 1));
		listener = fd;
		harness_spawn(1, answer);
	} else {
		REQUIRE("connect", !connect(fd, (struct sockaddr *)&address, sizeof address));
		set_end(fd);
	}
	return harness_main(commands, NULL);
}
